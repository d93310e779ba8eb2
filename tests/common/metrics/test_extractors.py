from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torch_fidelity
from torch import Tensor

from lambda24.common.config import from_dict
from lambda24.common.metrics.extractors import (
    EFFICIENTNET_LITE0,
    DINOv2Features,
    EfficientNetLite0Features,
    FeatureExtractor,
    InceptionFeatures,
    build_extractor,
    register_extractors,
)
from lambda24.common.metrics.perceptual import efficientnet_lite0


def random_images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return build_extractor(EfficientNetLite0Features(size=64))


def test_features_are_the_pooled_layer_and_logits_of_the_plain_network(
    extractor: FeatureExtractor,
) -> None:
    images = random_images(2, 3, 32, 32)
    network = efficientnet_lite0()
    resized = F.interpolate(images.float(), size=(64, 64), mode="bilinear", antialias=True)
    maps = network.forward_features(resized / 127.5 - 1)  # type: ignore[operator]
    features = extractor(images)
    torch.testing.assert_close(features.pooled, maps.mean(dim=(2, 3)), rtol=1e-3, atol=1e-4)
    assert features.logits is not None
    torch.testing.assert_close(features.logits, network(resized / 127.5 - 1), rtol=1e-3, atol=1e-3)
    assert features.pooled.shape == (2, 1280)
    assert features.logits.shape == (2, 1000)


def test_features_of_an_image_do_not_depend_on_its_batch(extractor: FeatureExtractor) -> None:
    images = random_images(5, 3, 32, 32)
    together, alone = extractor(images), extractor(images[3:4])
    torch.testing.assert_close(together.pooled[3:4], alone.pooled, rtol=1e-3, atol=1e-5)


def test_autocast_changes_nothing(extractor: FeatureExtractor) -> None:
    images = random_images(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = extractor(images)
    torch.testing.assert_close(inside.pooled, extractor(images).pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32)])
def test_extractor_refuses_other_shapes(
    extractor: FeatureExtractor, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, 3, H, W\)"):
        extractor(random_images(*shape))
    with pytest.raises(ValueError, match=r"torch\.float32"):
        extractor(random_images(2, 3, 8, 8).float())


def test_identity_tells_sizes_apart(extractor: FeatureExtractor) -> None:
    other = build_extractor(EfficientNetLite0Features(size=96))
    assert extractor.identity["weights"] == other.identity["weights"] == "sha256:579344248a93e230"
    assert extractor.identity["resize"] != other.identity["resize"]


def test_torch_fidelity_can_name_the_extractor(tmp_path: Path) -> None:
    register_extractors()
    register_extractors()  # a second time is harmless

    class Images(torch.utils.data.Dataset[Tensor]):
        def __init__(self, seed: int) -> None:
            self.images = random_images(12, 3, 16, 16, seed=seed)

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> Tensor:
            return self.images[index]

    values = torch_fidelity.calculate_metrics(
        input1=Images(0),
        input2=Images(1),
        feature_extractor=EFFICIENTNET_LITE0,
        isc=True,
        isc_splits=1,
        prc=True,
        cuda=False,
        batch_size=6,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert values["inception_score_mean"] >= 1
    assert 0 <= values["precision"] <= 1


def test_inception_from_a_local_file_must_hold_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "inception.pth"
    with pytest.raises(ValueError, match=r"no file at .*inception\.pth"):
        build_extractor(InceptionFeatures(weights_path=str(path)))
    path.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="not a readable file of tensors"):
        build_extractor(InceptionFeatures(weights_path=str(path)))


def test_inception_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*unused: object, **options: object) -> None:
        raise OSError("no route to host")

    module = "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"
    monkeypatch.setattr(module, offline)
    with pytest.raises(ValueError, match=r"no route to host.*lambda24\[offline\]"):
        build_extractor(InceptionFeatures())


def test_inception_with_random_local_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The constructor only loads; take a state dict from an instance that skipped loading.
    path = tmp_path / "inception.pth"
    module = "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"
    with monkeypatch.context() as patch:
        patch.setattr(module, lambda *unused, **options: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        source = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(source.state_dict(), path)
    extractor = build_extractor(InceptionFeatures(weights_path=str(path)))
    images = random_images(2, 3, 32, 32)
    features = extractor(images)
    assert features.pooled.shape == (2, 2048)
    assert features.logits is not None
    assert features.logits.shape == (2, 1008)
    assert extractor.identity["weights"].startswith("sha256:")

    # sFID: the first channels of the seventh mixed block, flattened with the channels last.
    blocks: list[Tensor] = []
    source.Mixed_6d.register_forward_hook(lambda module, inputs, output: blocks.append(output))
    source(images)
    assert features.spatial is not None
    expected = blocks[0][:, :7].permute(0, 2, 3, 1).reshape(2, 2023)
    torch.testing.assert_close(features.spatial, expected)
    assert features.spatial.std() > 0
    plain = build_extractor(InceptionFeatures(weights_path=str(path), spatial=False))
    assert plain.identity["layers"] == ["2048", "logits_unbiased"]
    assert extractor.identity["layers"] == [*plain.identity["layers"], "Mixed_6d.branch1x1[:7]"]


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="size: got 8"):
        from_dict(EfficientNetLite0Features, {"size": 8})


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=42, patch_size=14
    )
    folder = tmp_path_factory.mktemp("models") / "dinov2"
    Dinov2Model(config).save_pretrained(folder)
    return folder


def test_dinov2_from_a_local_folder_gives_its_class_token(dinov2: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Model

    images = random_images(2, 3, 300, 300)
    extractor = build_extractor(DINOv2Features(model=str(dinov2)))
    features = extractor(images)
    processor = BitImageProcessor(
        size={"height": 224, "width": 224},
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    inputs = processor(images, return_tensors="pt")["pixel_values"]
    assert inputs.shape == (2, 3, 224, 224)
    expected = Dinov2Model.from_pretrained(dinov2).eval()(pixel_values=inputs).pooler_output
    # The processor rounds the resized image to whole numbers.
    torch.testing.assert_close(features.pooled, expected, atol=0.03, rtol=0.02)
    assert features.pooled.std() > 0.3
    assert features.logits is None


def test_dinov2_is_known_by_its_weights(dinov2: Path) -> None:
    first = build_extractor(DINOv2Features(model=str(dinov2))).identity
    weights = dinov2 / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    second = build_extractor(DINOv2Features(model=str(dinov2))).identity
    assert first["weights"] != second["weights"]
    with pytest.raises(ValueError, match="nowhere' is neither a folder nor a reachable Hub id"):
        build_extractor(DINOv2Features(model=str(dinov2 / "nowhere")))

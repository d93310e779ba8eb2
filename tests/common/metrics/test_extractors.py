from pathlib import Path
from typing import Any

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

DINOV2_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 42,
    "patch_size": 14,
}


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
    config = Dinov2Config(**DINOV2_SIZES)
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
    with pytest.raises(ValueError, match=r"nowhere' could not be loaded[^$]*give a local folder"):
        build_extractor(DINOv2Features(model=str(dinov2 / "nowhere")))


def test_dinov2_with_registers_keeps_them(tmp_path: Path) -> None:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(**DINOV2_SIZES, num_register_tokens=3)
    network = Dinov2WithRegistersModel(config).eval()
    torch.nn.init.normal_(network.embeddings.register_tokens, std=3)
    network.save_pretrained(tmp_path)
    images = random_images(2, 3, 224, 224)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        tokens = network(pixel_values=(images / 255 - mean) / std).last_hidden_state
    features = build_extractor(DINOv2Features(model=str(tmp_path)))(images)
    torch.testing.assert_close(features.pooled, tokens[:, 0], rtol=1e-4, atol=1e-4)


def test_files_of_half_precision_give_features_of_float32(dinov2: Path, tmp_path: Path) -> None:
    from transformers import Dinov2Model

    half = Dinov2Model.from_pretrained(dinov2).half()
    half.save_pretrained(tmp_path)
    extractor = build_extractor(DINOv2Features(model=str(tmp_path)))
    assert {value.dtype for value in extractor.state_dict().values()} == {torch.float32}
    assert extractor.identity["precision"] == "float32"
    images = random_images(2, 3, 32, 32)
    exact = build_extractor(DINOv2Features(model=str(dinov2)))(images)
    torch.testing.assert_close(extractor(images).pooled, exact.pooled, rtol=1e-2, atol=1e-2)


def test_dinov2_of_other_tensors_is_refused(tmp_path: Path) -> None:
    """Each of these loads with random blocks, or without tensors that it holds, in transformers."""
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        ViTConfig,
        ViTModel,
    )

    def refused(name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build_extractor(DINOv2Features(model=str(tmp_path / name)))

    vit = ViTModel(ViTConfig(**{**DINOV2_SIZES, "intermediate_size": 32}), add_pooling_layer=False)
    vit.save_pretrained(tmp_path / "vit")
    refused("vit", r"extractor\.model .*vit' is a 'vit', not one of dinov2")

    plain = Dinov2Model(Dinov2Config(**DINOV2_SIZES))
    state = plain.state_dict()
    lost = [name for name in state if "layer.1." in name]
    plain.save_pretrained(
        tmp_path / "torn", state_dict={k: v for k, v in state.items() if k not in lost}
    )
    refused("torn", rf"lacks {len(lost)} tensors: .*layer\.1\.")

    registers = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINOV2_SIZES))
    registers.save_pretrained(tmp_path / "registers")
    plain.config.save_pretrained(tmp_path / "registers")  # says that there are none
    refused("registers", r"holds 1 tensors that a 'dinov2'.*register_tokens")

    deeper = Dinov2Model(Dinov2Config(**{**DINOV2_SIZES, "num_hidden_layers": 3}))
    deeper.save_pretrained(tmp_path / "deeper")
    plain.config.save_pretrained(tmp_path / "deeper")
    refused("deeper", r"holds \d+ tensors that a 'dinov2'.*layer\.2\.")

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torch_fidelity
from torch import Tensor

from common.config import from_dict
from common.extractors import (
    EFFICIENTNET_LITE0,
    EfficientNetLite0Features,
    FeatureExtractor,
    InceptionFeatures,
    build_extractor,
    register_extractors,
)
from common.features import efficientnet_lite0


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
    features = extractor(random_images(1, 3, 32, 32))
    assert features.pooled.shape == (1, 2048)
    assert features.logits is not None
    assert features.logits.shape == (1, 1008)
    assert extractor.identity["weights"].startswith("sha256:")


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="size: got 8"):
        from_dict(EfficientNetLite0Features, {"size": 8})

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lambda24.common.data.dataset import load_dataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.metrics.distances import feature_stats
from lambda24.common.metrics.extractors import (
    EfficientNetLite0Features,
    FeatureExtractor,
    build_extractor,
)
from lambda24.common.metrics.reference import (
    SubsetImages,
    TensorImages,
    default_cache,
    extract_features,
    image_batches,
    reference_features,
    spread,
    unreadable_images,
)


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return build_extractor(EfficientNetLite0Features(size=32))


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (30, 3, 16, 16), generator=generator, dtype=torch.uint8)


class CountingImages:
    """An `ImageSource` that counts what is read."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.num_read = 0

    def __len__(self) -> int:
        return len(self.images)

    def images_uint8(self, indices: Sequence[int]) -> Tensor:
        self.num_read += len(indices)
        return self.images[torch.as_tensor(indices)]


def test_stream_and_reference_agree(extractor: FeatureExtractor, images: Tensor) -> None:
    stream = extract_features(images.split(7), extractor)
    whole = reference_features(TensorImages(images), extractor, batch_size=11, max_kept=30)
    torch.testing.assert_close(stream.pooled, whole.pooled, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(stream.stats.mean, whole.stats.mean, rtol=1e-3, atol=1e-5)
    assert stream.logits is not None
    assert stream.logits.shape == (30, 1000)
    assert whole.stats.count == 30


def test_kept_features_are_spread_but_statistics_cover_all(
    extractor: FeatureExtractor, images: Tensor
) -> None:
    whole = reference_features(TensorImages(images), extractor, batch_size=8, max_kept=30)
    few = reference_features(TensorImages(images), extractor, batch_size=8, max_kept=4)
    chosen = [0, 7, 15, 22]
    assert spread(30, 4) == chosen
    torch.testing.assert_close(few.pooled, whole.pooled[chosen])
    torch.testing.assert_close(few.stats.covariance, whole.stats.covariance)


def test_a_cache_hit_equals_a_fresh_result(
    extractor: FeatureExtractor, images: Tensor, tmp_path: Path
) -> None:
    source = CountingImages(images)
    first = reference_features(source, extractor, batch_size=8, max_kept=10, cache=tmp_path)
    assert source.num_read == 60  # once for the key, once for the features
    again = reference_features(source, extractor, batch_size=8, max_kept=10, cache=tmp_path)
    assert source.num_read == 90
    for a, b in (
        (first.pooled, again.pooled),
        (first.stats.mean, again.stats.mean),
        (first.stats.covariance, again.stats.covariance),
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert again.stats.count == 30
    assert sorted(path.suffix for path in tmp_path.rglob("*") if path.is_file()) == [
        ".safetensors",
        ".sha256",
    ]


def test_one_changed_pixel_extractor_or_setting_is_another_entry(
    extractor: FeatureExtractor, images: Tensor, tmp_path: Path
) -> None:
    def entries(pixels: Tensor, network: FeatureExtractor, kept: int) -> int:
        reference_features(
            TensorImages(pixels), network, batch_size=16, max_kept=kept, cache=tmp_path
        )
        return len(list(tmp_path.rglob("*.safetensors")))

    assert entries(images, extractor, 10) == 1
    changed = images.clone()
    changed[17, 1, 3, 3] ^= 1
    assert entries(changed, extractor, 10) == 2
    assert entries(images, extractor, 11) == 3
    assert entries(images, build_extractor(EfficientNetLite0Features(size=40)), 10) == 4
    assert entries(images.reshape(30, 3, 8, 32), extractor, 10) == 5
    assert entries(images, extractor, 10) == 5


def test_a_damaged_entry_is_computed_again(
    extractor: FeatureExtractor, images: Tensor, tmp_path: Path
) -> None:
    first = reference_features(
        TensorImages(images), extractor, batch_size=8, max_kept=5, cache=tmp_path
    )
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="made anew: .*safetensors is damaged"):
        again = reference_features(
            TensorImages(images), extractor, batch_size=8, max_kept=5, cache=tmp_path
        )
    torch.testing.assert_close(again.stats.mean, first.stats.mean, rtol=0, atol=0)
    assert path.stat().st_size > 1000


def test_a_cache_that_cannot_be_written_costs_no_result(
    extractor: FeatureExtractor, images: Tensor, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="reference features are not cached"):
        found = reference_features(
            TensorImages(images), extractor, batch_size=8, cache=tmp_path / "file"
        )
    assert found.stats.count == 30


def test_subset_reads_the_chosen_images(images: Tensor) -> None:
    subset = SubsetImages(TensorImages(images), [3, 9, 27])
    assert len(subset) == 3
    torch.testing.assert_close(subset.images_uint8(range(1, 3)), images[[9, 27]])


def test_cache_follows_the_xdg_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "lambda24"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "lambda24"


def test_reference_needs_two_images(extractor: FeatureExtractor, images: Tensor) -> None:
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        reference_features(TensorImages(images[:1]), extractor, batch_size=8)


def test_statistics_of_kept_features_are_not_those_of_all(
    extractor: FeatureExtractor, images: Tensor
) -> None:
    few = reference_features(TensorImages(images), extractor, batch_size=8, max_kept=4)
    assert not torch.allclose(feature_stats(few.pooled).mean, few.stats.mean)


class SpatialNetwork(torch.nn.Module):
    """Corner pixels as pooled features, the first row as spatial ones."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images[:, :, 0, 0].float(), images[:, 0, 0].float()


def test_spatial_statistics_are_those_of_all_images_cached_or_not(
    images: Tensor, tmp_path: Path
) -> None:
    extractor = FeatureExtractor(SpatialNetwork(), {"name": "spatial"}, ("spatial",))
    expected = feature_stats(images[:, 0, 0].float())
    found = [
        reference_features(
            TensorImages(images), extractor, batch_size=8, max_kept=3, cache=tmp_path
        )
        for _ in range(2)
    ]
    for features in (*found, extract_features(images.split(7), extractor)):
        assert features.spatial is not None
        torch.testing.assert_close(features.spatial.mean, expected.mean)
        torch.testing.assert_close(features.spatial.covariance, expected.covariance)
        assert features.spatial.count == 30
    assert found[1].pooled.shape == (3, 3)


def test_unreadable_images_are_left_out_of_a_reference(tmp_path: Path) -> None:
    """And are no copies of those that stand in for them in training."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(4):
            pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    config = DataConfig(path=str(tmp_path), image_size=8, eval_split="train")
    whole = torch.cat(list(image_batches(load_dataset(config, train=True), 3)))
    for damaged in ("cat/2", "dog/0"):
        (tmp_path / f"{damaged}.png").write_bytes(b"")
    data = load_dataset(config, train=True)
    for _ in range(2):
        found = torch.cat(list(image_batches(data, 3)))
        assert torch.equal(found, whole[[0, 1, 3, 5, 6, 7]])
    subset = SubsetImages(data, [2, 3, 4, 5])
    assert torch.equal(torch.cat(list(image_batches(subset, 3))), whole[[3, 5]])
    assert sorted(unreadable_images(subset)) == [0, 2]

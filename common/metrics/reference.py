"""Features of whole sets of images, and a cache for those of reference sets.

A cached entry is found by the hash of the pixels, the extractor and what is kept, so a data set
that changed never meets stale numbers. Entries are safetensors files, written atomically.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from lambda24.common.files import DamagedFileError, check_digest, reading, write_digest
from lambda24.common.metrics.distances import FeatureStats, MomentAccumulator
from lambda24.common.metrics.extractors import FeatureExtractor, ImageFeatures

CACHE_FORMAT = 1


class ImageSource(Protocol):
    """Images by number, such as `common.data.dataset.ImageDataset`."""

    def __len__(self) -> int: ...

    def images_uint8(self, indices: Sequence[int]) -> Tensor:
        """Images `(N, 3, H, W)` uint8, the same at every call."""


@dataclass(frozen=True)
class TensorImages:
    """An `ImageSource` of uint8 images `(N, 3, H, W)` in memory."""

    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def images_uint8(self, indices: Sequence[int]) -> Tensor:
        return self.images[torch.as_tensor(indices)]


@dataclass(frozen=True)
class SubsetImages:
    """The images of a source at `indices`."""

    source: ImageSource
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def images_uint8(self, indices: Sequence[int]) -> Tensor:
        return self.source.images_uint8([self.indices[index] for index in indices])


def spread(size: int, count: int) -> list[int]:
    """`count` of `size` positions, evenly spaced: a fair part of a sorted set too."""
    return [index * size // count for index in range(count)]


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of images.

    Args:
        stats: mean and covariance over all images.
        pooled: `(M, D)` features of all images, or of some spread evenly over the set.
        logits: `(N, K)`, or None for extractors without classes and for references.
        spatial: mean and covariance of spatial features, or None for extractors without.
    """

    stats: FeatureStats
    pooled: Tensor
    logits: Tensor | None
    spatial: FeatureStats | None = None


def extract_features(batches: Iterable[Tensor], extractor: FeatureExtractor) -> FeatureSet:
    """Features of a stream of uint8 batches, all of them kept."""
    return collect_features(extractor(batch) for batch in batches)


def collect_features(batches: Iterable[ImageFeatures]) -> FeatureSet:
    """Joins the features of batches."""
    moments, spatial = MomentAccumulator(), MomentAccumulator()
    pooled, logits = [], []
    for part in batches:
        moments.update(part.pooled)
        pooled.append(part.pooled)
        if part.logits is not None:
            logits.append(part.logits)
        if part.spatial is not None:
            spatial.update(part.spatial)
    return FeatureSet(
        moments.stats(),
        torch.cat(pooled),
        torch.cat(logits) if logits else None,
        spatial.stats() if spatial.count else None,
    )


def reference_features(
    source: ImageSource,
    extractor: FeatureExtractor,
    *,
    batch_size: int,
    max_kept: int = 10_000,
    cache: Path | None = None,
) -> FeatureSet:
    """Statistics of all images and the features of `max_kept` of them, spread evenly.

    Args:
        cache: folder of earlier results, found by the hash of the pixels, the extractor and
            `max_kept`, so a changed data set is never met with stale numbers; None for no cache.
    """
    if len(source) < 2:
        raise ValueError(f"the reference needs at least 2 images, got {len(source)}")
    if cache is None:
        return _reference_features(source, extractor, batch_size, max_kept)
    key = _content_hash(source, extractor, max_kept)
    path = cache / "features" / f"{key}.safetensors"
    found = read_cached_features(path)
    if found is None:
        found = _reference_features(source, extractor, batch_size, max_kept)
        try:
            write_cached_features(path, found)
        except OSError as error:  # a result is worth more than its cache
            warnings.warn(f"reference features are not cached: {error}", stacklevel=2)
    return found


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/lambda24`, by default `~/.cache/lambda24`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root else Path.home() / ".cache") / "lambda24"


def image_batches(source: ImageSource, batch_size: int) -> Iterator[Tensor]:
    """All readable images in order, uint8 `(B, 3, H, W)`; what stands in for others is left out."""
    for start in range(0, len(source), batch_size):
        indices = range(start, min(start + batch_size, len(source)))
        batch, left_out = source.images_uint8(indices), unreadable_images(source)
        if left_out:
            batch = batch[[index not in left_out for index in indices]]
        if len(batch):
            yield batch


def unreadable_images(source: ImageSource) -> Collection[int]:
    """Which images of a source have been found unreadable, of those that were asked for so far."""
    if isinstance(source, SubsetImages):
        inner = unreadable_images(source.source)
        return [place for place, index in enumerate(source.indices) if inner and index in inner]
    found: Collection[int] = getattr(source, "unreadable", ())
    return found


def _reference_features(
    source: ImageSource, extractor: FeatureExtractor, batch_size: int, max_kept: int
) -> FeatureSet:
    num_kept = min(max_kept, len(source))
    is_kept = torch.zeros(len(source), dtype=torch.bool)
    is_kept[spread(len(source), num_kept)] = True
    moments, spatial, kept, start = MomentAccumulator(), MomentAccumulator(), [], 0
    with tqdm(total=len(source), unit="image", desc="reference features", leave=False) as bar:
        for batch in image_batches(source, batch_size):
            features = extractor(batch)
            moments.update(features.pooled)
            if features.spatial is not None:
                spatial.update(features.spatial)
            kept.append(features.pooled[is_kept[start : start + len(batch)]])
            start += len(batch)
            bar.update(len(batch))
    return FeatureSet(
        moments.stats(), torch.cat(kept), None, spatial.stats() if spatial.count else None
    )


def _content_hash(source: ImageSource, extractor: FeatureExtractor, max_kept: int) -> str:
    protocol = {"format": CACHE_FORMAT, "extractor": extractor.identity, "max_kept": max_kept}
    digest = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode())
    for batch in image_batches(source, 512):
        digest.update(f"{tuple(batch.shape[1:])}".encode())
        digest.update(batch.contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_cached_features(path: Path) -> FeatureSet | None:
    """An entry of the cache; None if it is not there, or damaged, which is a warning."""
    if not path.is_file():
        return None
    try:
        with reading(path, "a cache of features"):
            check_digest(path)
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            count = int(tensors["count"])
            stats = FeatureStats(tensors["mean"], tensors["covariance"], count)
            spatial = None
            if "spatial_mean" in tensors:
                own = tensors["spatial_mean"], tensors["spatial_covariance"]
                spatial = FeatureStats(*own, count)
            return FeatureSet(stats, tensors["pooled"], None, spatial)
    except DamagedFileError as error:
        warnings.warn(f"made anew: {error}", stacklevel=2)
        return None


def write_cached_features(path: Path, features: FeatureSet) -> None:
    """Writes an entry of the cache, with its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}")
    stats, spatial = features.stats, features.spatial
    tensors = {"mean": stats.mean, "covariance": stats.covariance, "pooled": features.pooled}
    if spatial is not None:
        tensors |= {"spatial_mean": spatial.mean, "spatial_covariance": spatial.covariance}
    save_file(tensors | {"count": torch.tensor(stats.count)}, temporary)
    path.with_suffix(".sha256").unlink(missing_ok=True)  # of the file that is replaced
    os.replace(temporary, path)
    write_digest(path)

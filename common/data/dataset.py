"""Labelled image datasets: a Hub name, a folder of parquet files, class folders, or "digits".

Images are read lazily as bytes and decoded once (kept as uint8 when the whole transformed set is
small) or on demand. What happens to a sample depends on its key alone; the order is `batches`'s, or
`streaming`'s for data that is too large to index.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lambda24.common.data.batches import (
    FINGERPRINT,
    Batch,
    IndexedData,
    RawBatch,
    build_loader,
    hash_integers,
    uniform_from_keys,
)
from lambda24.common.data.cut import Cut
from lambda24.common.data.settings import DataConfig
from lambda24.common.data.shards import ShardedSplit, open_shards
from lambda24.common.data.sources import Source, Table, open_source
from lambda24.common.data.streaming import StreamedImages, StreamingConfig
from lambda24.common.images import UnreadableImageError, decode_rgb, from_uint8

__all__ = [
    "Batch",
    "DataConfig",
    "ImageDataset",
    "Sample",
    "build_loader",
    "load_dataset",
    "load_training_data",
    "load_training_sample",
    "uniform_from_keys",
]

logger = logging.getLogger(__name__)

CACHE_BYTES = 512 * 2**20
HASHED_BYTES = 2 * 2**30
EVAL_SPLITS = ("validation", "val", "valid", "dev", "test")


@dataclass(frozen=True)
class Sample:
    """One image `(3, H, W)` fp32 in [-1, 1], its label and its key."""

    image: Tensor
    label: int
    key: int


def load_training_data(config: DataConfig) -> ImageDataset | StreamedImages:
    """Opens the training images, streamed if the config says so; raises as `load_dataset`."""
    if config.streaming is None:
        return load_dataset(config, train=True)
    return StreamedImages(_open_shards(config, config.streaming)[0], config.streaming, config.cut)


def load_training_sample(config: DataConfig, max_images: int) -> ImageDataset:
    """Training images to evaluate on: all of an index, of a stream the first of some shards."""
    if config.streaming is None:
        return load_dataset(config, train=True)
    return _first_images(config, _open_shards(config, config.streaming)[0], max_images)


def load_dataset(config: DataConfig, *, train: bool) -> ImageDataset:
    """Opens the training or the evaluation images; both share `label_names`.

    Raises:
        ValueError: no such data, split or column, no images, or labels out of range.
    """
    if config.streaming is not None:
        if train:
            raise ValueError("data.streaming: streamed training images have no index")
        shards = _open_shards(config, config.streaming)[1]
        return _first_images(config, shards, config.streaming.max_eval_images)
    source = open_source(config.path)
    split, held_out = config.split, None
    source.check_split("split", split)
    if config.eval_split is not None:
        _check_eval_split(source, config)
        split = split if train else config.eval_split
    else:
        others = [name for name in EVAL_SPLITS if name in source.splits and name != split]
        if others:
            split = split if train else others[0]
        else:
            held_out = not train
    table = source.table(split, config.split, config.image_key, config.label_key)
    rows = np.arange(len(table.labels))
    if held_out is not None:
        rows = rows[stratified(table.labels, config.eval_fraction) == held_out]
    if config.max_images is not None and len(rows) > config.max_images:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[: config.max_images])
    if not len(rows):
        part = "train" if train else "evaluate"
        raise ValueError(
            f"data.path {config.path!r} has {len(table.labels)} images in split {split!r}, "
            f"which leaves none to {part} on (data.eval_fraction {config.eval_fraction:g})"
        )
    return ImageDataset(table, rows, config, augment=train)


def _check_eval_split(source: Source, config: DataConfig) -> None:
    try:
        source.check_split("eval_split", str(config.eval_split))
    except ValueError as error:
        part = f"{config.eval_fraction:.0%} of {config.split!r}"
        hint = f"data.eval_split=null takes a validation or test split, or else holds out {part}"
        raise ValueError(f"{error}; {hint}") from None


def _open_shards(
    config: DataConfig, streaming: StreamingConfig
) -> tuple[ShardedSplit, ShardedSplit]:
    return open_shards(
        config.path,
        split=config.split,
        eval_splits=EVAL_SPLITS if config.eval_split is None else (config.eval_split,),
        image_key=config.image_key,
        label_key=config.label_key,
        label_names=streaming.names,
        min_shards=streaming.lanes,
    )


@dataclass(frozen=True)
class _KeptTable(Table):
    """Encoded images in memory."""

    contents: list[bytes | str | None]

    def image(self, row: int) -> Image.Image:
        content = self.contents[row]
        if content is None:
            raise UnreadableImageError("the row is empty")
        return decode_rgb(content)

    def file(self, row: int) -> str | None:
        content = self.contents[row]
        return content if isinstance(content, str) else None

    def content(self, row: int) -> bytes:
        content = self.contents[row]
        return Path(content).read_bytes() if isinstance(content, str) else content or b""


def _first_images(config: DataConfig, split: ShardedSplit, count: int) -> ImageDataset:
    """The first images of a split's shards, which come in a fixed random order."""
    shards = np.random.default_rng(0).permutation(split.num_shards).tolist()
    rows = list(islice(chain.from_iterable(map(split.rows, shards)), count))
    if not rows:
        raise ValueError(f"data.path {config.path!r} has no images to evaluate on")
    labels = np.array([row.label for row in rows], dtype=np.int64)
    table = _KeptTable(labels, split.label_names, [row.content for row in rows])
    return ImageDataset(table, np.arange(len(rows)), config, augment=False)


def stratified(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Which of `labels (N,)` to hold out: boolean `(N,)`, floor(fraction * N) of them True.

    Every class gives its share to within one image; which images is a fixed random choice.
    """
    shuffled = np.random.default_rng(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    # Equally spaced places of a list sorted by class; the epsilon is for 0.29 * 100 < 29.
    steps = np.floor(np.arange(len(labels) + 1) * fraction + 1e-9)
    mask = np.zeros(len(labels), dtype=bool)
    mask[by_class] = np.diff(steps) > 0
    return mask


class ImageDataset(IndexedData, Dataset[Sample]):
    """Square images with labels; made by `load_dataset`.

    An image that cannot be decoded is counted, and the next readable one stands in for it. Decoded
    images are kept as uint8 when crops are fixed and the whole set takes at most 512 MiB.
    """

    def __init__(
        self, table: Table, rows: np.ndarray, config: DataConfig, *, augment: bool
    ) -> None:
        self.config = config
        self.label_names = table.label_names
        self.labels = torch.from_numpy(table.labels[rows])  # (N,) int64
        self._table, self._rows = table, rows
        self._cut = config.cut if augment else Cut(config.image_size, config.resize)
        self._stand_ins: dict[int, int] = {}
        shape = (len(rows), 3, config.image_size, config.image_size)
        keep = not self._cut.random_crop and math.prod(shape) <= CACHE_BYTES
        self._cache = torch.empty(shape, dtype=torch.uint8) if keep else None
        self._cached = torch.zeros(len(rows) if keep else 0, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_classes(self) -> int:
        return len(self.label_names)

    @property
    def identity(self) -> dict[str, str]:
        names = ", ".join(self.label_names)
        return {"classes": names, FINGERPRINT: self.fingerprint}

    def warnings(self) -> list[str]:
        if not self.num_skipped:
            return []
        return [
            f"{self.num_skipped} of {len(self)} training images are unreadable: "
            "others stood in for them"
        ]

    @property
    def unreadable(self) -> frozenset[int]:
        """Images found unreadable so far."""
        return frozenset(self._stand_ins)

    @property
    def num_skipped(self) -> int:
        """Images found unreadable so far."""
        return len(self._stand_ins)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the content: names, labels and the encoded bytes of every image.

        Of more than 2 GiB of images only the sizes of all and sixteen images are looked at.
        """
        spread = np.linspace(0, len(self) - 1, num=min(16, len(self))).astype(int).tolist()
        digest = hashlib.sha1(repr((len(self), self.label_names, self.config.resize)).encode())
        digest.update(self.labels.numpy().tobytes())
        digest.update(self.images_uint8(spread).numpy().tobytes())
        sizes = [self._table.content_size(row) for row in self._rows.tolist()]
        digest.update(np.array(sizes, dtype=np.int64).tobytes())
        if sum(sizes) <= HASHED_BYTES:
            for row in self._rows.tolist():
                digest.update(self._table.content(row))
        return digest.hexdigest()

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        """The sample of (epoch, index) under seed 0."""
        epoch, index = place
        raw = self.read([index], hash_integers(torch.tensor([0]), epoch, index))
        return Sample(from_uint8(raw.images[0]), int(raw.labels[0]), int(raw.keys[0]))

    def images_uint8(self, indices: Sequence[int] | Tensor) -> Tensor:
        """`(N, 3, H, W)` uint8 as evaluation sees them: centre crop, no flip."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self._images(chosen.tolist(), [None] * len(chosen))

    def original_size(self, index: int) -> tuple[int, int]:
        """Width and height of an image before it is resized and cut."""
        row = int(self._rows[self._stand_ins.get(index, index)])
        return self._table.image(row).size

    def read(self, indices: Sequence[int], keys: Tensor) -> RawBatch:
        """Augmented samples of one batch, from their keys `(B,)`; runs in the workers."""
        images = self._cut.vary(self._images(indices, self._cut.corners(keys)), keys)
        found = [self._stand_ins.get(index, index) for index in indices]
        return RawBatch(images, self.labels[found], keys, dict(self._stand_ins))

    def note_stand_ins(self, stand_ins: Mapping[int, int]) -> None:
        """Takes over what a worker found unreadable."""
        self._stand_ins.update(stand_ins)

    def _images(self, indices: Sequence[int], corners: Sequence[Sequence[float] | None]) -> Tensor:
        if self._cache is None:
            pairs = zip(indices, corners, strict=True)
            return torch.stack([self._readable(index, corner) for index, corner in pairs])
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        for index in chosen[~self._cached[chosen]].tolist():
            self._cache[index] = self._readable(index, None)
            self._cached[index] = True
        return self._cache[chosen]

    def _readable(self, index: int, corner: Sequence[float] | None) -> Tensor:
        """Pixels of the first readable image of the class from `index` on."""
        unreadable: list[int] = []
        for candidate in self._of_one_class(self._stand_ins.get(index, index)):
            try:
                pixels = self._pixels(candidate, corner)
            except UnreadableImageError as error:
                if not self._stand_ins and not unreadable:
                    name = self._table.name(int(self._rows[candidate]))
                    logger.warning("%s is unreadable, the next stands in: %s", name, error)
                unreadable.append(candidate)
                continue
            self._stand_ins.update(dict.fromkeys(unreadable, candidate))
            return pixels
        label = int(self.labels[index])
        raise ValueError(
            f"data.path {self.config.path!r}: none of the {len(unreadable)} images of class "
            f"{self.label_names[label]!r} is readable"
        )

    def _of_one_class(self, first: int) -> Iterator[int]:
        """An image and, if more are wanted, the others of its class behind it and before it."""
        yield first
        own = (self.labels == self.labels[first]).nonzero()[:, 0].tolist()
        place = own.index(first)
        yield from own[place + 1 :] + own[:place]

    def _pixels(self, index: int, corner: Sequence[float] | None = None) -> Tensor:
        """(3, H, W) uint8; `corner` (2,) in [0, 1) places the crop, None centres it."""
        row = int(self._rows[index])
        name = f"{self._table.name(row)} of data.path {self.config.path!r}"
        return self._cut.square(self._table.image(row), corner, name)

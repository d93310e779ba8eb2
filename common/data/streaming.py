"""Batches from data too large to index: shards read in order, by lanes, and exactly resumed.

The shards of epoch e are permuted by (seed, e) and dealt to the lanes. A lane reads its shards one
after the other, in blocks of `shuffle_buffer` images that are permuted together, and goes on to the
next epoch by itself; so every epoch holds every image once, but lanes may be in different epochs.
Every batch takes equally many images from every lane. The number of lanes is part of the config and
divided among processes and workers, so the images of a step do not depend on either.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Annotated, Any

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lambda24.common.config import Count, Size, config_class
from lambda24.common.data.batches import Batch, epoch_order, hash_integer, hash_integers
from lambda24.common.data.cut import Cut
from lambda24.common.data.shards import Row, ShardedSplit
from lambda24.common.images import UnreadableImageError, decode_rgb, from_uint8

logger = logging.getLogger(__name__)

SHARD_STREAM, BLOCK_STREAM = -3, -4
MAX_UNREADABLE = 1000


@config_class
class StreamingConfig:
    """How to read a dataset that is streamed.

    Args:
        shuffle_buffer: images of a lane that are permuted together; they are held undecoded, so
            a process needs lanes / processes times this many encoded images of memory.
        lanes: readers, each with shards of its own; a multiple of the processes, and a divisor of
            the batch size over accumulation. Workers beyond lanes / processes have nothing to do.
        num_classes: of data whose labels are unnamed integers.
        label_names: of data whose features do not name them.
        max_eval_images: images of the evaluation split to keep in memory.
    """

    shuffle_buffer: Count = 1024
    lanes: Size = 8
    num_classes: Count | None = None
    label_names: tuple[str, ...] | None = None
    max_eval_images: Annotated[int, Field(ge=1)] = 10_000

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.label_names is not None:
            raise ValueError(
                f"num_classes {self.num_classes} and {len(self.label_names)} label_names are given;"
                " one is enough"
            )

    @property
    def names(self) -> tuple[str, ...] | None:
        """Label names as far as the config knows them."""
        if self.num_classes is not None:
            return tuple(str(number) for number in range(self.num_classes))
        return self.label_names


@dataclass
class Place:
    """Where a lane is: all of what resuming needs."""

    epoch: int = 0
    turn: int = 0  # which of the lane's shards of this epoch the block begins in
    row: int = 0  # at which row
    drawn: int = 0  # images of the block that were handed out or found unreadable
    skipped: int = 0  # unreadable images so far


@dataclass(frozen=True)
class _Image:
    row: Row
    turn: int
    shard: int
    number: int  # of the row in the shard


class Lane:
    """Undecoded images in the order of one lane, from a `Place` on, forever."""

    def __init__(
        self, split: ShardedSplit, *, number: int, lanes: int, buffer: int, seed: int, place: Place
    ) -> None:
        self.split, self.number, self.lanes = split, number, lanes
        self.buffer, self.seed = buffer, seed
        self.place = replace(place)
        self._images: Iterator[_Image] = self._read()
        self._block: list[_Image] = []
        self._order: list[int] = []
        self._fill()

    def draw(self) -> tuple[Row, int, int, int]:
        """The next row with its epoch, shard and number."""
        if self.place.drawn == len(self._block):
            self._next_block()
        image = self._block[self._order[self.place.drawn]]
        self.place.drawn += 1
        return image.row, self.place.epoch, image.shard, image.number

    def _read(self) -> Iterator[_Image]:
        """From the place to the end of its epoch."""
        seed = hash_integer(self.seed, SHARD_STREAM)
        order = epoch_order(seed, self.place.epoch, self.split.num_shards)
        shards = order[self.number :: self.lanes].tolist()
        start = self.place.row
        for turn in range(self.place.turn, len(shards)):
            for number, row in enumerate(self.split.rows(shards[turn], start), start=start):
                yield _Image(row, turn, shards[turn], number)
            start = 0

    def _fill(self) -> None:
        self._block = list(islice(self._images, self.buffer))
        place = self.place
        seed = hash_integer(self.seed, BLOCK_STREAM, self.number, place.turn, place.row)
        self._order = epoch_order(seed, place.epoch, len(self._block)).tolist()

    def _next_block(self) -> None:
        place = self.place
        if self._block:
            place.turn, place.row = self._block[-1].turn, self._block[-1].number + 1
            place.drawn = 0
            self._fill()
        if not self._block:  # the epoch is over
            place.epoch, place.turn, place.row, place.drawn = place.epoch + 1, 0, 0, 0
            self._images = self._read()
            self._fill()
        if not self._block:
            raise ValueError(f"data.path: the shards of lane {self.number} hold no rows")


@dataclass(frozen=True)
class _Part:
    """What a worker sends: equally many images of each of its lanes, in the order of `places`."""

    images: Tensor  # (lanes, n, 3, H, W) uint8
    labels: Tensor  # (lanes, n)
    keys: Tensor  # (lanes, n)
    places: dict[int, Place]


class _Parts(IterableDataset[_Part]):
    """Endless parts of batches; each worker takes every so-manieth lane of its process."""

    def __init__(
        self, data: StreamedImages, seed: int, images_per_lane: int, places: dict[int, Place]
    ) -> None:
        self.data, self.seed = data, seed
        self.images_per_lane, self.places = images_per_lane, places

    def __iter__(self) -> Iterator[_Part]:
        worker = get_worker_info()
        numbers = sorted(self.places)
        if worker is not None:
            numbers = numbers[worker.id :: worker.num_workers]
        config = self.data.config
        lanes = [
            Lane(
                self.data.split,
                number=number,
                lanes=config.lanes,
                buffer=config.shuffle_buffer,
                seed=self.seed,
                place=self.places[number],
            )
            for number in numbers
        ]
        while True:
            images, labels, keys = zip(*[self._take(lane) for lane in lanes], strict=True)
            places = {lane.number: replace(lane.place) for lane in lanes}
            yield _Part(torch.stack(images), torch.stack(labels), torch.stack(keys), places)

    def _take(self, lane: Lane) -> tuple[Tensor, Tensor, Tensor]:
        """Images (n, 3, H, W) uint8, labels and keys of the lane's next readable images."""
        pictures: list[Image.Image] = []
        labels: list[int] = []
        origins: list[list[int]] = []
        unreadable = 0
        while len(pictures) < self.images_per_lane:
            row, *origin = lane.draw()  # origin: epoch, shard, number in the shard
            try:
                if row.content is None:
                    raise UnreadableImageError("the row is empty")
                pictures.append(decode_rgb(row.content))
                unreadable = 0
            except UnreadableImageError as error:
                lane.place.skipped += 1
                unreadable += 1
                if unreadable == MAX_UNREADABLE:
                    raise ValueError(
                        f"data.path: {unreadable} images in a row are unreadable, the last: {error}"
                    ) from error
                continue
            labels.append(row.label)
            origins.append(origin)
        epochs, shards, numbers = torch.tensor(origins).unbind(1)
        keys = hash_integers(torch.full_like(epochs, self.seed), epochs, shards, numbers)
        cut, corners = self.data.cut, self.data.cut.corners(keys)
        squares = [
            cut.square(picture, corner, f"image {number} of shard {shard}")
            for picture, corner, (_, shard, number) in zip(pictures, corners, origins, strict=True)
        ]
        return cut.vary(torch.stack(squares), keys), torch.tensor(labels), keys


class StreamLoader(Iterator[Batch]):
    """Infinite batches; `state_dict` is the place after the last batch given out."""

    def __init__(
        self, data: StreamedImages, parts: _Parts, places: dict[int, Place], num_workers: int
    ) -> None:
        self.places = places
        self._num_parts = max(1, num_workers)
        self._num_warned = self.num_skipped
        self._parts: Iterator[_Part] = iter(
            DataLoader(
                parts,
                batch_size=None,
                num_workers=num_workers,
                prefetch_factor=4 if num_workers else None,
                generator=torch.Generator(),  # else the iterator draws from the global one
            )
        )

    def __next__(self) -> Batch:
        parts = list(islice(self._parts, self._num_parts))
        numbers = [number for part in parts for number in part.places]
        # In the order of the lanes, whatever worker had them.
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        images = torch.cat([part.images for part in parts])[order].flatten(0, 1)
        labels = torch.cat([part.labels for part in parts])[order].flatten()
        keys = torch.cat([part.keys for part in parts])[order].flatten()
        for part in parts:
            self.places |= part.places
        if self.num_skipped > self._num_warned:
            if not self._num_warned:
                logger.warning("unreadable images are skipped; metrics count them")
            self._num_warned = self.num_skipped
        return Batch(from_uint8(images), labels, keys)

    @property
    def num_skipped(self) -> int:
        """Unreadable images of this process's lanes since the run began."""
        return sum(place.skipped for place in self.places.values())

    def state_dict(self) -> dict[str, dict[str, int]]:
        """Places of this process's lanes; those of all processes together resume a run."""
        return {str(number): asdict(place) for number, place in self.places.items()}


class StreamedImages:
    """Images to train on, without an index; made by `common.data.dataset.load_training_data`."""

    def __init__(self, split: ShardedSplit, config: StreamingConfig, cut: Cut) -> None:
        self.split, self.config, self.cut = split, config, cut
        self.label_names = split.label_names

    @property
    def num_classes(self) -> int:
        return len(self.label_names)

    @property
    def unit(self) -> str:
        return "shards"

    @property
    def size(self) -> int:
        return self.split.num_shards

    @property
    def identity(self) -> dict[str, str]:
        return {"classes": ", ".join(self.label_names)}

    def warnings(self) -> list[str]:
        return []

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        start_step: int,
        rank: int,
        world_size: int,
        num_workers: int,
        places: Mapping[str, Mapping[str, int]],
    ) -> StreamLoader:
        """See `TrainingData`; the step says nothing of a stream, its places do."""
        del start_step
        return self.loader(
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
            state=places,
        )

    def loader(
        self,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        state: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> StreamLoader:
        """Batches of this process, from the beginning or from `state`, the places of all lanes.

        Raises:
            ValueError: a number of lanes that processes or batch size do not divide.
        """
        lanes = self.config.lanes
        if lanes % world_size or (batch_size * world_size) % lanes:
            raise ValueError(
                f"data.streaming.lanes {lanes} must be divisible by {world_size} processes and "
                f"divide the {batch_size * world_size} images of a micro-batch"
            )
        share = lanes // world_size  # neighbours, so that ranks in order are the lanes in order
        own = range(rank * share, (rank + 1) * share)
        places = {number: Place(**(state or {}).get(str(number), {})) for number in own}
        parts = _Parts(self, seed, batch_size * world_size // lanes, dict(places))
        return StreamLoader(self, parts, places, min(num_workers, len(own)))

"""Batches in a fixed global order: which sample is where, and every sample's own randomness.

The global batch of step s is positions [s B, (s + 1) B) of the concatenated epoch permutations,
whatever the number of processes and workers; so any step can be reached without reading the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from einops import repeat
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lambda24.common.images import from_uint8

# splitmix64 (Steele, Lea, Flood 2014), as signed 64-bit integers: torch wraps around.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


@dataclass(frozen=True)
class Batch:
    """Samples of one step on one process.

    Args:
        images: `(B, 3, H, W)` fp32 in [-1, 1].
        labels: `(B,)` int64.
        keys: `(B,)` int64, hash of (seed, epoch, index). All per-sample randomness must come from
            them (see `uniform_from_keys`), so that two processes do what one would.
        tokens: `(B, L, G)` int64 that stand for the images, which are then empty; or None.
    """

    images: Tensor
    labels: Tensor
    keys: Tensor
    tokens: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        tokens = None if self.tokens is None else self.tokens.to(device)
        return Batch(self.images.to(device), self.labels.to(device), self.keys.to(device), tokens)


@dataclass(frozen=True)
class RawBatch:
    """What a worker sends: uint8 images, and which indices others stand in for."""

    images: Tensor  # (B, 3, H, W) uint8
    labels: Tensor  # (B,)
    keys: Tensor  # (B,)
    stand_ins: dict[int, int] = field(default_factory=dict)
    tokens: Tensor | None = None  # (B, L, G) int64


FINGERPRINT = "fingerprint of the data"
"""Name of a hash of contents among `TrainingData.identity`; with it data may lie elsewhere."""


class BatchStream(Protocol):
    """Batches of one process, without end."""

    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, dict[str, int]]:
        """Where this process's readers stand; empty where the step alone says it."""

    @property
    def num_skipped(self) -> int | None:
        """Images of this process passed over so far; None where that is not counted."""


class TrainingData(Protocol):
    """What `fit` trains on."""

    @property
    def unit(self) -> str:
        """What `size` counts, for messages."""

    @property
    def size(self) -> int:
        """A run goes on with data of the same size only: the order depends on it."""

    @property
    def identity(self) -> dict[str, str]:
        """What else must be the same when a run goes on, by name."""

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
    ) -> BatchStream:
        """Batches of one process from a step on, or from the places of all processes' readers."""

    def warnings(self) -> list[str]:
        """What the end of a run says of the data."""


class SampleSource(Protocol):
    """What `build_loader` needs of a dataset."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int], keys: Tensor) -> RawBatch:
        """Augmented samples; `keys (B,)` int64 are their only randomness."""

    def note_stand_ins(self, stand_ins: Mapping[int, int]) -> None:
        """Takes over which samples a worker could not decode."""


def hash_integers(*values: Tensor | int) -> Tensor:
    """64-bit hash of integers or int64 tensors of one shape: splitmix64, chained; int64."""
    state = torch.zeros((), dtype=torch.int64)
    for value in values:
        value = torch.as_tensor(value, dtype=torch.int64)
        state = _mix((state.to(value.device) ^ value) + _GOLDEN)
    return state


def hash_integer(*values: int) -> int:
    """`hash_integers` of plain numbers, as a number in [0, 2^63)."""
    return int(hash_integers(*values)) & (2**63 - 1)


def uniform_from_keys(keys: Tensor, stream: int, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform numbers that depend on nothing but their key, stream and place.

    Args:
        keys: `(B,)` int64.
        stream: which independent sequence; below zero is reserved for the data pipeline.
        shape: numbers per key.

    Returns:
        `(B, *shape)` fp32 in [0, 1), multiples of 2^-24, on the device of `keys`.
    """
    count = int(torch.tensor(shape, dtype=torch.int64).prod())
    start = hash_integers(
        keys, repeat(torch.tensor(stream, device=keys.device), "-> b", b=len(keys))
    )
    counter = torch.arange(1, count + 1, device=keys.device) * _GOLDEN  # (N,)
    bits = _mix(start[:, None] + counter)  # (B, N)
    uniform = (_shift_right(bits, 40)).float() * 2.0**-24
    return uniform.reshape(len(keys), *shape)


def epoch_order(seed: int, epoch: int, size: int) -> Tensor:
    """Permutation of one epoch, `(size,)` int64."""
    generator = torch.Generator().manual_seed(hash_integer(seed, epoch))
    return torch.randperm(size, generator=generator)


def build_loader(
    dataset: SampleSource,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Infinite batches from `start_step` on; rank r gets its contiguous slice of each global batch.

    With a-fold accumulation a step is a micro-batch: divide the batch size by a, multiply
    `start_step` by a, and each a batches together are the same global batch. Leaves the global
    random state alone.

    Args:
        batch_size: samples per process.
        num_workers: processes that decode; the batches do not depend on it.

    Raises:
        ValueError: empty data, a batch size below 1, or a rank outside the world.
    """
    if len(dataset) < 1 or batch_size < 1 or not 0 <= rank < world_size:
        raise ValueError(
            f"build_loader needs samples, batch_size >= 1 and rank < world_size, got "
            f"{len(dataset)} samples, batch_size {batch_size}, rank {rank} of {world_size}"
        )
    order = _Order(len(dataset), batch_size, seed, start_step, rank, world_size)
    return _batches(dataset, order, num_workers)


class IndexedData:
    """`TrainingData` of a `SampleSource`: the step alone says which samples come next."""

    unit = "training images"

    @property
    def size(self: SampleSource) -> int:
        return len(self)

    @property
    def identity(self) -> dict[str, str]:
        return {}

    def batches(
        self: SampleSource,
        *,
        batch_size: int,
        seed: int,
        start_step: int,
        rank: int,
        world_size: int,
        num_workers: int,
        places: Mapping[str, Mapping[str, int]],
    ) -> IndexedBatches:
        del places
        loader = build_loader(
            self,
            batch_size=batch_size,
            seed=seed,
            start_step=start_step,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
        )
        return IndexedBatches(loader)

    def warnings(self) -> list[str]:
        return []


class IndexedBatches:
    """`BatchStream` of `build_loader`."""

    num_skipped = None

    def __init__(self, loader: Iterator[Batch]) -> None:
        self._loader = loader

    def __next__(self) -> Batch:
        return next(self._loader)

    def state_dict(self) -> dict[str, dict[str, int]]:
        return {}


def _batches(dataset: SampleSource, order: _Order, num_workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        _Samples(dataset, order.seed),
        batch_size=None,  # the sampler yields whole batches
        sampler=order,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        generator=torch.Generator(),  # else the iterator draws from the global one
    )
    for raw in loader:
        dataset.note_stand_ins(raw.stand_ins)
        yield Batch(from_uint8(raw.images), raw.labels, raw.keys, raw.tokens)


class _Order(Sampler[list[tuple[int, int]]]):
    """Yields lists of (epoch, index), one list per step of one rank, forever."""

    def __init__(
        self, size: int, batch_size: int, seed: int, start_step: int, rank: int, world_size: int
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.start_step, self.rank, self.world_size = start_step, rank, world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders: dict[int, list[int]] = {}
        step = self.start_step
        while True:
            first = (step * self.world_size + self.rank) * self.batch_size
            places = [divmod(first + i, self.size) for i in range(self.batch_size)]
            for epoch in {epoch for epoch, _ in places} - orders.keys():
                orders[epoch] = epoch_order(self.seed, epoch, self.size).tolist()
            for epoch in [epoch for epoch in orders if epoch < places[0][0]]:
                del orders[epoch]
            yield [(epoch, orders[epoch][offset]) for epoch, offset in places]
            step += 1


class _Samples(Dataset[RawBatch]):
    """Whole batches by list of (epoch, index); the seed lives here, the data does not know it."""

    def __init__(self, source: SampleSource, seed: int) -> None:
        self.source, self.seed = source, seed

    def __getitem__(self, places: list[tuple[int, int]]) -> RawBatch:
        epochs, indices = torch.tensor(places).unbind(1)
        seeds = torch.full_like(epochs, self.seed)
        return self.source.read(indices.tolist(), hash_integers(seeds, epochs, indices))


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)

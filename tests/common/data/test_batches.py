"""The global order of samples, keys, and numbers drawn from keys."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lambda24.common.data.batches import (
    Batch,
    RawBatch,
    build_loader,
    epoch_order,
    hash_integer,
    hash_integers,
    uniform_from_keys,
)

SIZE = 10


class Numbers:
    """Ten samples; the label is the index."""

    def __len__(self) -> int:
        return SIZE

    def read(self, indices: Sequence[int], keys: Tensor) -> RawBatch:
        labels = torch.tensor(indices)
        images = labels.to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).contiguous()
        return RawBatch(images, labels, keys)

    def note_stand_ins(self, stand_ins: Mapping[int, int]) -> None:
        assert not stand_ins


def loader(**options: int) -> Iterator[Batch]:
    return build_loader(Numbers(), **{"batch_size": 4, "seed": 7, **options})


def labels(batches: Iterator[Batch], count: int) -> list[int]:
    return torch.cat([batch.labels for batch in islice(batches, count)]).tolist()


def test_every_epoch_holds_every_sample_once() -> None:
    order = labels(loader(), 15)  # 60 positions: six epochs
    epochs = [order[i : i + SIZE] for i in range(0, 60, SIZE)]
    assert all(sorted(epoch) == list(range(SIZE)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert epochs[2] == epoch_order(7, 2, SIZE).tolist()
    assert labels(loader(seed=8), 15) != order


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("start_step", [0, 3])
def test_global_batches_are_the_same(world_size: int, num_workers: int, start_step: int) -> None:
    expected = [(b.labels, b.keys, b.images) for b in islice(loader(), start_step, start_step + 4)]
    ranks = [
        loader(
            batch_size=4 // world_size,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
            start_step=start_step,
        )
        for rank in range(world_size)
    ]
    for label, key, image in expected:
        parts = [next(rank) for rank in ranks]
        assert torch.equal(torch.cat([part.labels for part in parts]), label)
        assert torch.equal(torch.cat([part.keys for part in parts]), key)
        assert torch.equal(torch.cat([part.images for part in parts]), image)


def test_batch_larger_than_an_epoch() -> None:
    batch = next(loader(batch_size=25))
    assert sorted(Counter(batch.labels.tolist()).values()) == [2] * 5 + [3] * 5
    assert len(set(batch.keys.tolist())) == 25


def test_global_random_state_is_untouched() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    next(loader(num_workers=2))
    next(loader())
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_wrong_arguments() -> None:
    for options in ({"batch_size": 0}, {"rank": 1}, {"rank": -1}):
        with pytest.raises(ValueError, match="build_loader needs"):
            loader(**options)


def splitmix64(state: int) -> int:
    mask = 2**64 - 1
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & mask
    return state ^ (state >> 31)


def test_hash_is_splitmix64() -> None:
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15
    for values in ((0,), (1, 2, 3), (-1, 2**62)):
        state = 0
        for value in values:
            state = splitmix64(((state ^ (value & mask)) + golden) & mask)
        assert hash_integer(*values) == state & (2**63 - 1)
        assert int(hash_integers(*values)) & mask == state
    assert splitmix64(golden) == 0xE220A8397B1DCDAF  # first output of the reference code, seed 0


def test_uniform_depends_only_on_key_stream_and_place() -> None:
    keys = hash_integers(torch.arange(50))
    whole = uniform_from_keys(keys, 3, (4, 5))
    assert whole.shape == (50, 4, 5)
    assert torch.equal(uniform_from_keys(keys[20:30], 3, (4, 5)), whole[20:30])
    assert torch.equal(uniform_from_keys(keys, 3, (7,)), whole.flatten(1)[:, :7])
    assert not torch.equal(uniform_from_keys(keys, 4, (4, 5)), whole)
    assert uniform_from_keys(keys, 3).shape == (50,)


def test_uniform_is_uniform() -> None:
    sample = uniform_from_keys(torch.arange(2000), 1, (50,))
    assert float(sample.min()) >= 0
    assert float(sample.max()) < 1
    counts = torch.histc(sample, 20, 0, 1)
    chi_squared = float(((counts - 5000) ** 2 / 5000).sum())
    assert chi_squared < 45  # 19 degrees of freedom: exceeded once in 1,500
    centred = sample - 0.5
    assert float((centred[1:] * centred[:-1]).mean().abs()) < 0.0015  # neighbouring keys
    assert float((centred[:, 1:] * centred[:, :-1]).mean().abs()) < 0.0015
    other = uniform_from_keys(torch.arange(2000), 2, (50,)) - 0.5
    assert float((centred * other).mean().abs()) < 0.0015


def test_no_two_uses_share_a_random_stream() -> None:
    numbers: dict[int, str] = {}
    root = Path(__file__).parents[3]
    for package in ("common", "tokenizer", "generator", "sampling"):
        for file in (root / package).rglob("*.py"):
            found = re.findall(r"^(\w+_STREAM(?:, \w+)*) = (.+)$", file.read_text(), re.MULTILINE)
            for names, values in found:
                for name, value in zip(names.split(", "), values.split(", "), strict=True):
                    assert numbers.setdefault(int(value), name) == name
    assert {-1, 100, 101, 102} < numbers.keys()

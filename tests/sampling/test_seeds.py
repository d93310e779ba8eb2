"""Random numbers belong to their seed."""

import re

import numpy as np
import pytest
import torch

from lambda24.sampling.seeds import SeededUniforms, check_seeds


def test_numbers_depend_on_the_seed_alone():
    together = SeededUniforms([3, 1, 3])
    alone = SeededUniforms(torch.tensor([1]))
    for num_tokens in (1, 4, 9):
        rows = together.draw(num_tokens, 2)
        assert rows.shape == (3, num_tokens, 2)
        assert torch.equal(rows[0], rows[2])
        assert not torch.equal(rows[0], rows[1])
        assert torch.equal(rows[1:2], alone.draw(num_tokens, 2))


def test_numbers_are_uniform_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    numbers = SeededUniforms([0]).draw(1000, 10)
    assert torch.equal(torch.get_rng_state(), state)
    assert numbers.dtype == torch.float64
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01
    assert (numbers * 2**24 % 1 > 0).any()  # finer than float32


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
def test_seed_out_of_range(seed: int):
    with pytest.raises(ValueError, match=rf"\[0, 2\^32 = 4294967296\), got {seed}"):
        SeededUniforms([seed])


def test_both_ends_of_the_range_are_seeds_of_their_own():
    rows = SeededUniforms([0, 2**32 - 1, 2**31, 1]).draw(4, 1)
    assert len({tuple(row.flatten().tolist()) for row in rows}) == 4


@pytest.mark.parametrize("seed", [1.0, 1.9, True, "1", None, torch.tensor(1.0)])
def test_what_is_no_integer_is_no_seed(seed: object):
    with pytest.raises(ValueError, match=f"seeds must be integers, got {re.escape(repr(seed))}"):
        check_seeds([seed])  # type: ignore[list-item]


def test_integers_of_all_types_are_seeds():
    assert check_seeds([1, np.int64(2), np.uint8(3), torch.tensor(4)]) == [1, 2, 3, 4]
    assert check_seeds(torch.tensor([5, 6])) == [5, 6]
    with pytest.raises(ValueError, match="got True"):
        check_seeds(torch.tensor([True]))

"""Random numbers belong to their seed."""

import pytest
import torch

from sampling.seeds import SeededUniforms


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


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_out_of_range(seed: int):
    with pytest.raises(ValueError, match=f"got {seed}"):
        SeededUniforms([seed])

"""Randomness of sampling: one CPU generator per image seed.

Image i draws all its numbers from its own generator, scale after scale, so they depend on its seed
and on nothing else: not on the batch it is in, not on the device.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

# torch's CPU generator (mt19937) keeps the low 32 bits: seeds 2^32 apart draw the same image.
NUM_SEEDS = 1 << 32


def as_integer(value: object, name: str) -> int:
    """A whole number of any integer type.

    Args:
        name: what the number is, in error messages.

    Raises:
        ValueError: a number that would have to be rounded, a bool, or no number.
    """
    if isinstance(value, bool):
        raise ValueError(f"{name} must be integers, got {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} must be integers, got {value!r}") from None


def check_seeds(seeds: Sequence[int] | Tensor) -> list[int]:
    """The seeds as plain integers.

    Raises:
        ValueError: a seed that is no integer in [0, 2^32).
    """
    values = seeds.tolist() if isinstance(seeds, Tensor) else seeds
    checked = [as_integer(value, "seeds") for value in values]
    for seed in checked:
        if not 0 <= seed < NUM_SEEDS:
            raise ValueError(f"seeds must be in [0, 2^32 = {NUM_SEEDS}), got {seed}")
    return checked


class SeededUniforms:
    """Streams of uniform numbers, one per seed.

    Args:
        seeds: one integer per image, in [0, 2^32): of more, torch's generator keeps 32 bits.

    Raises:
        ValueError: a seed that is no integer or out of range.
    """

    def __init__(self, seeds: Sequence[int] | Tensor) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in check_seeds(seeds)]

    def draw(self, num_tokens: int, num_uniforms: int) -> Tensor:
        """The streams' next numbers, float64 (B, num_tokens, num_uniforms) in [0, 1), on CPU.

        float64 because an inverse CDF over 196,560 codes is coarser than 2^-24 resolves.
        """
        rows = [
            torch.rand(num_tokens, num_uniforms, generator=generator, dtype=torch.float64)
            for generator in self._generators
        ]
        return torch.stack(rows)

"""Randomness of sampling: one CPU generator per image seed.

Image i draws all its numbers from its own generator, scale after scale, so they depend on its seed
and on nothing else: not on the batch it is in, not on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SeededUniforms:
    """Streams of uniform numbers, one per seed.

    Args:
        seeds: one integer per image, in [0, 2^63).

    Raises:
        ValueError: a seed out of range.
    """

    def __init__(self, seeds: Sequence[int] | Tensor) -> None:
        values = [int(seed) for seed in seeds]
        for seed in values:
            if not 0 <= seed < 2**63:
                raise ValueError(f"seeds must be in [0, 2^63), got {seed}")
        self._generators = [torch.Generator().manual_seed(seed) for seed in values]

    def draw(self, num_tokens: int, num_uniforms: int) -> Tensor:
        """The streams' next numbers, float64 (B, num_tokens, num_uniforms) in [0, 1), on CPU.

        float64 because an inverse CDF over 196,560 codes is coarser than 2^-24 resolves.
        """
        rows = [
            torch.rand(num_tokens, num_uniforms, generator=generator, dtype=torch.float64)
            for generator in self._generators
        ]
        return torch.stack(rows)

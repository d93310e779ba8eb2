"""Finite scalar quantization: each channel is bounded and rounded to a few levels.

FSQ (arXiv 2309.15505) bounds with tanh; iFSQ (arXiv 2601.17124) with 2 sigmoid(1.6 z) - 1, which is
tanh(0.8 z) and makes a normal latent nearly uniform. No codebook, no losses.
"""

from __future__ import annotations

import math
from itertools import accumulate
from operator import mul
from typing import Literal

import torch
from torch import Tensor

from lambda24.common.config import config_class
from lambda24.tokenizer.quantizers.base import Quantized, Quantizer, straight_through

_MARGIN = 1e-3  # keeps the outermost level reachable: the bound exceeds it by half this fraction


@config_class
class FSQConfig:
    """Levels per channel, at least 3 each: len(levels) channels, prod(levels) codes."""

    kind: Literal["fsq", "ifsq"] = "fsq"
    levels: tuple[int, ...] = (8, 8, 8, 6, 5)

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 3:
            raise ValueError(f"levels must be at least 3 each (2 is lopsided), got {self.levels}")
        if math.prod(self.levels) > 2**62:
            raise ValueError(f"levels {self.levels} exceed 2**62 codes, an int64 index")


class FSQ(Quantizer):
    """Levels are integers around zero divided by L // 2: in [-1, 1], asymmetric when L is even."""

    def __init__(self, config: FSQConfig) -> None:
        levels = config.levels
        super().__init__(len(levels), (math.prod(levels),), loss_weights={})
        self.config = config
        sizes = torch.tensor(levels)
        # Mixed radix with channel 0 fastest.
        strides = torch.tensor([1, *accumulate(levels[:-1], mul)])
        half_range = (sizes - 1) * (1 + _MARGIN) / 2
        offset = torch.where(sizes % 2 == 0, 0.5, 0.0)
        self.slope = 0.8 if config.kind == "ifsq" else 1.0
        self.register_buffer("levels", sizes, persistent=False)
        self.register_buffer("strides", strides, persistent=False)
        self.register_buffer("half_range", half_range, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        # Sends z = 0 to the level 0 when an even number of levels sits off centre.
        self.register_buffer("shift", torch.atanh(offset / half_range), persistent=False)
        self.levels: Tensor
        self.strides: Tensor
        self.half_range: Tensor
        self.offset: Tensor
        self.shift: Tensor

    def _quantize(self, z: Tensor) -> Quantized:
        bounded = self._bounded(z)
        code = self._rounded(bounded.detach()) / self._half_width
        z_q = straight_through(code, bounded / self._half_width)
        return Quantized(z_q, self._indices(bounded.detach()), code, {}, {})

    def _encode(self, z: Tensor) -> Tensor:
        return self._indices(self._bounded(z))

    def _decode(self, indices: Tensor) -> Tensor:
        digits = indices // self.strides % self.levels  # (..., D)
        return (digits - self._half_width) / self._half_width

    @property
    def _half_width(self) -> Tensor:
        return self.levels // 2

    def _bounded(self, z: Tensor) -> Tensor:
        half_range, offset, shift = (b.float() for b in (self.half_range, self.offset, self.shift))
        return (self.slope * z + shift).tanh() * half_range - offset

    def _rounded(self, bounded: Tensor) -> Tensor:
        """The level nearest to it: with over 1,000 of them the margin reaches beyond the last."""
        return bounded.round().clamp(-self._half_width, self.levels - 1 - self._half_width)

    def _indices(self, bounded: Tensor) -> Tensor:
        digits = self._rounded(bounded).long() + self._half_width
        return (digits * self.strides).sum(-1, keepdim=True)

"""Phi: the 3x3 convolutions that smooth a scale's interpolated codes (VAR, arXiv 2404.02905)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

RATIO = 0.5
"""Share of the convolution in the output; the identity has the rest. VAR's `quant_resi`."""


class Phi(nn.Conv2d):
    """`(1 - RATIO) x + RATIO conv(x)` on maps `(B, C, S, S)`.

    The convolution starts as the identity, so an untrained phi changes nothing; VAR starts from
    random weights, which halve every contribution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)
        nn.init.dirac_(self.weight)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        return torch.lerp(maps, super().forward(maps), RATIO)


def phi_index(scale: int, num_scales: int, num_phis: int) -> int:
    """Which of `num_phis` convolutions a scale uses: the tick nearest to scale / (num_scales - 1).

    VAR spaces K ticks evenly from 1/2K to 1 - 1/2K, for K = 4 from 1/3K to 1 - 1/3K. Two ticks are
    often equally near, and which one floating point picks depends on the order of operations.
    Here numbers are integers and the higher tick wins: that is the map of VAR's released
    tokenizers, 0 0 1 1 1 2 2 3 3 3 for 10 scales and 4 convolutions, and it leaves none unused.
    """
    if num_phis == 1 or num_scales == 1:
        return 0
    # All positions times the common denominator: tick j stands at first + j * step.
    parts = 3 if num_phis == 4 else 2
    unit = parts * num_phis * (num_phis - 1) * (num_scales - 1)
    first = unit // (parts * num_phis)
    step = (unit - 2 * first) // (num_phis - 1)
    position = scale * unit // (num_scales - 1)
    return min(range(num_phis), key=lambda j: (abs(first + j * step - position), -j))

"""Positions: 2-D rotary embedding on a reference grid's coordinates, or VAR's learned table.

Shapes: L tokens of a pyramid, D head channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lambda24.tokenizer.tokens import TokenSpec

RopeGrid = Literal["centers", "corners"]


def grid_coordinates(
    spec: TokenSpec, grid: RopeGrid = "centers", reference: int | None = None
) -> Tensor:
    """(y, x) of every token in cells of a reference grid, float32 (L, 2).

    "centers" puts a coarse cell where its area is, (i + 0.5) H / h - 0.5: what averaging down and
    bilinear interpolation assume, symmetric under flips, evenly spaced at any ratio. "corners" is
    Infinity's round(i H / h), for parity with its weights.

    Args:
        reference: H, side of the reference grid; None is the pyramid's last. Infinity counts on a
            grid of 64 at every resolution, that of its schedule for a million pixels.
    """
    size = spec.latent_size if reference is None else reference
    scales = []
    for side in spec.scales:
        steps = torch.arange(side, dtype=torch.float64)
        if grid == "centers":
            line = (steps + 0.5) * size / side - 0.5
        else:
            line = (steps * size / side).round()
        scales.append(torch.cartesian_prod(line, line))
    return torch.cat(scales).float()


def rope_table(
    spec: TokenSpec,
    head_dim: int,
    *,
    theta: float = 10_000.0,
    grid: RopeGrid = "centers",
    reference: int | None = None,
) -> Tensor:
    """Cosines and sines of the rotation angles, float32 (2, L, D / 2).

    A quarter of the D channels' frequencies, theta^(-4i/D), turn with y and the same ones with x:
    the angles of channel pairs are [y frequencies | x frequencies].

    Raises:
        ValueError: `head_dim` not divisible by 4.
    """
    if head_dim % 4:
        raise ValueError(f"rope2d needs head_dim divisible by 4, got {head_dim}")
    frequencies = theta ** (-torch.arange(head_dim // 4, dtype=torch.float64) * 4 / head_dim)
    angles = (
        grid_coordinates(spec, grid, reference).double()[:, :, None] * frequencies
    )  # (L, 2, D/4)
    angles = angles.flatten(1)
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotates channel pairs (i, i + D/2) of x (..., n, heads, D) by the angles of (2, n, D/2).

    Infinity pairs (2i, 2i + 1) instead; that is a permutation of the rows of the q and k
    projections.
    """
    cos, sin = table[:, :, None, :]  # (n, 1, D/2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)

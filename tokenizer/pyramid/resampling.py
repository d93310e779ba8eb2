"""Resampling of square maps: area, bilinear and bicubic."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Resampling = Literal["area", "bilinear", "bicubic"]


def resample(maps: Tensor, side: int, mode: Resampling, *, antialias: bool = True) -> Tensor:
    """`(B, C, S, S)` to `(B, C, side, side)`, pixel centres aligned; the same side is the identity.

    Args:
        mode: "area" averages the cells of the coarser grid.
        antialias: "bilinear" and "bicubic" widen their kernels when they shrink a map. Without it
            they read 2 or 4 positions a side, however many there are.
    """
    before = maps.shape[-1]
    if side == before:
        return maps
    if mode == "area":
        return F.adaptive_avg_pool2d(maps, side)
    antialias = antialias and side < before
    return F.interpolate(
        maps, size=(side, side), mode=mode, align_corners=False, antialias=antialias
    )

"""Cache-sized tiles of a batch: memory-bound operations run fast on a CPU without a compiler."""

from __future__ import annotations

import torch
from torch import Tensor

TILE_ELEMENTS = 1 << 17  # float32 numbers a tile: 512 KiB


def wants_tiles(x: Tensor) -> bool:
    """On a CPU in eager mode; compilers and GPUs fuse the plain form themselves."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def tiles(x: Tensor) -> list[slice]:
    """Slices along the first axis, of about `TILE_ELEMENTS` numbers each."""
    step = max(1, TILE_ELEMENTS // max(1, x[:1].numel()))
    return [slice(start, start + step) for start in range(0, len(x), step)]

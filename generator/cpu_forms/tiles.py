"""Cache-sized tiles of a batch: memory-bound operations run fast on a CPU without a compiler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

TILE_ELEMENTS = 1 << 17  # float32 numbers a tile: 512 KiB


_GPU_FORMS: ContextVar[bool] = ContextVar("gpu_forms", default=False)


@contextmanager
def forms_of_gpus() -> Iterator[None]:
    """Computes on a CPU as a GPU would, to count what it keeps."""
    token = _GPU_FORMS.set(True)
    try:
        yield
    finally:
        _GPU_FORMS.reset(token)


def wants_cpu_form(x: Tensor) -> bool:
    """Whether to compute what is the same on all devices in the way that is fast on a CPU."""
    return x.device.type == "cpu" and (torch.compiler.is_compiling() or not _GPU_FORMS.get())


def wants_tiles(x: Tensor) -> bool:
    """On a CPU in eager mode; compilers and GPUs fuse the plain form themselves."""
    return wants_cpu_form(x) and not torch.compiler.is_compiling()


def tiles(x: Tensor) -> list[tuple[slice, slice]]:
    """Slices of images and positions of x (B, n, ...), of about `TILE_ELEMENTS` numbers each."""
    images, positions = x.shape[:2]
    rows = max(1, TILE_ELEMENTS // max(1, x[:1, :1].numel()))
    if rows >= positions:
        step = rows // max(1, positions)
        return [(slice(i, i + step), slice(0, positions)) for i in range(0, images, step)]
    starts = range(0, positions, rows)
    return [(slice(i, i + 1), slice(n, n + rows)) for i in range(images) for n in starts]

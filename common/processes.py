"""Positions shared among the processes of an `Accelerator`, and their results gathered."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor


def share(count: int, accelerator: Accelerator | None) -> Tensor:
    """This process's positions of `count`, `(n,)` int64; every process gets equally many.

    Where the processes do not divide `count`, the last position comes more than once.
    """
    if accelerator is None:
        return torch.arange(count)
    world = accelerator.num_processes
    mine = torch.arange(-(-count // world)) * world + accelerator.process_index
    return mine.clamp(max=count - 1)


def gather(values: Tensor, count: int, accelerator: Accelerator | None) -> Tensor:
    """All processes' rows for their positions, in order, without repeats, on the CPU.

    Args:
        values: this process's `(n, ...)`, one row for each of its positions.
        count: number of positions in all.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return values
    everyone = accelerator.gather(values.to(accelerator.device)).cpu()
    shares = everyone.unflatten(0, (accelerator.num_processes, -1))
    return shares.transpose(0, 1).flatten(0, 1)[:count].contiguous()


def main_first(accelerator: Accelerator | None) -> AbstractContextManager[None]:
    """The main process runs the block before the others, who find its results in the cache."""
    context: AbstractContextManager[None] = (
        nullcontext() if accelerator is None else accelerator.main_process_first()
    )
    return context

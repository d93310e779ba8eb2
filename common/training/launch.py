"""Accelerators: of a `fit` (devices, processes, number formats, trackers), of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from lambda24.common.training.fsdp import set_up_sharding
from lambda24.common.training.precision import Precision, resolve_precision

PATIENCE = timedelta(hours=12)


def patient_accelerator() -> Accelerator:
    """Accelerator of a program that trains nothing, whose processes wait hours for one another.

    The main process alone extracts a reference of a million images or packs files. By default the
    others give up after 10 minutes (NCCL) or 30 (gloo), and take the main process with them.
    """
    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])


def build_accelerator(
    *, precision: Precision, trackers: Sequence[str], run: str | Path
) -> Accelerator:
    """Accelerator of a `fit`, on whatever device and processes the launcher gives.

    Raises:
        ValueError: a tracker whose package is not installed, or FSDP of version 1.
    """
    mixed = "bf16" if resolve_precision(precision) == "bf16" else "no"
    if AcceleratorState._shared_state.get("_mixed_precision", mixed) != mixed:
        AcceleratorState._reset_state()  # an earlier fit of this process had another precision
    # Buffers are equal on all ranks by construction, and a broadcast before every forward would
    # change them in place between two forwards of one step. Gradients live in the buckets that are
    # summed, and not beside them too.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    accelerator = Accelerator(
        mixed_precision=mixed,
        log_with=list(trackers) or None,
        project_dir=str(run),
        kwargs_handlers=[ddp],
    )
    set_up_sharding(accelerator)
    missing = set(trackers) - {str(tracker) for tracker in accelerator.log_with}
    if missing:
        raise ValueError(f"loop.trackers: package of {', '.join(sorted(missing))} is not installed")
    return accelerator

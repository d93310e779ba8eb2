"""Accelerators: of a `fit` (devices, processes, number formats, trackers), of other programs.

Parameters are always fp32, bf16 means autocast.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
)
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

Precision = Literal["fp32", "bf16", "auto"]


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


def resolve_precision(precision: Precision) -> Literal["fp32", "bf16"]:
    """What "auto" means here: bf16 on CUDA devices and CPUs that compute in it, else fp32."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if has_bf16 else "fp32"


def wants_sharding() -> bool:
    """Whether the launcher asked for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def set_up_sharding(accelerator: Accelerator) -> None:
    """Makes a launch with FSDP do what this project needs; otherwise changes nothing.

    Raises:
        ValueError: FSDP of version 1.
    """
    state = accelerator.state
    if not wants_sharding() or accelerator.num_processes == 1:
        return
    if state.distributed_type == DistributedType.MULTI_CPU:
        # Accelerate ignores its plugin on CPUs, where FSDP2 works as well.
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    plugin = state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_version: got {plugin.fsdp_version} (allowed: 2)")
    if "FSDP_AUTO_WRAP_POLICY" not in os.environ:
        plugin.auto_wrap_policy = transformer_auto_wrap_policy
        plugin.transformer_cls_names_to_wrap = None  # those of `_no_split_modules`
    # Every rank initialises the same weights, so nothing needs to be sent. Parameters stay fp32:
    # autocast chooses what is computed in bf16, and quantizers and normalisers must not be.
    plugin.cpu_ram_efficient_loading = False
    plugin.mixed_precision_policy = MixedPrecisionPolicy()

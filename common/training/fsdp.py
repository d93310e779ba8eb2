"""Parameters sharded over processes (FSDP2 through Accelerate), and whole tensors on disk.

`accelerate launch --use_fsdp --fsdp_version 2 ...` shards parameters, gradients, optimizer state
and running averages. Modules whose class the trained module names in `_no_split_modules` (the
generator's blocks) are gathered one at a time, and the rest as one. A checkpoint always holds whole
tensors, so it can be resumed on any number of processes, sharded or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def gather(state: Any, *, keep: bool = True) -> Any:
    """Replaces sharded tensors in nested dicts and lists by whole ones on the CPU.

    A collective operation: all ranks call it on the same structure.

    Args:
        keep: False drops the whole tensors again, for ranks that do not write them.
    """
    if isinstance(state, DTensor):
        whole = state.full_tensor().detach()
        return whole.cpu() if keep else None
    if isinstance(state, Mapping):
        return {key: gather(value, keep=keep) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(gather(value, keep=keep) for value in state)
    return state


def scatter(state: Any, like: Any) -> Any:
    """Shards tensors of `state` where `like`, nested in the same way, holds sharded ones."""
    if isinstance(like, DTensor):
        return shard(state, like)
    if isinstance(like, Mapping) and isinstance(state, Mapping):
        return {key: scatter(value, like.get(key)) for key, value in state.items()}
    return state


def shard(whole: Tensor, like: DTensor) -> DTensor:
    """This rank's part of a tensor that all ranks hold, laid out as `like`; shares no memory."""
    part = distribute_tensor(
        whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
    return cast(DTensor, part.clone())  # a view would keep the whole alive


def shard_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Any:
    """Load hook of an optimizer: shards state tensors that are shaped as their sharded parameter.

    Use as `optimizer.register_load_state_dict_pre_hook(shard_optimizer_state)`.
    """
    members: dict[int, Tensor] = {}
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=False):
        members |= dict(zip(saved["params"], group["params"], strict=False))
    sharded: dict[int, dict[str, Any]] = {}
    for number, values in state["state"].items():
        parameter = members.get(number)
        sharded[number] = dict(values)
        if not isinstance(parameter, DTensor):
            continue
        for name, value in values.items():
            is_whole = isinstance(value, Tensor) and not isinstance(value, DTensor)
            if is_whole and value.shape == parameter.shape and value.ndim:
                sharded[number][name] = shard(value, parameter)
    return {**state, "state": sharded}

"""Averaged weights, whole or sharded."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.profiler import record_function

from lambda24.common.training.fsdp import shard

Module = TypeVar("Module", bound=nn.Module)


class EMA(Generic[Module]):
    """Exponential moving average of a module's weights, in fp32.

    The decay of update t is min(decay, (1 + t) / (10 + t)), so early averages forget the
    initialisation. Buffers are copied. Give the unwrapped module; it may change device or become
    sharded later. With a sharded module each rank keeps and averages its part.
    """

    def __init__(self, module: Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self._module = module
        self._average: Module = copy.deepcopy(module).float().eval().requires_grad_(False)
        self._shards: list[DTensor] = []  # when there are any, parameters of `_average` are empty

    @property
    def average(self) -> Module:
        """The averaged module, whole.

        When the module is sharded, the first access after an update gathers the parts: make it on
        all ranks. They stay whole until the next update.
        """
        for whole, part in zip(self._average.parameters(), self._shards, strict=False):
            whole.data = part.full_tensor()
        self._shards.clear()
        return self._average

    @torch.no_grad()
    @record_function("average")
    def update(self, step: int) -> None:
        """Call after each optimizer step with its number, from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        online = [parameter.detach() for parameter in self._module.parameters()]
        averages: list[Tensor] = list(self._average.parameters())
        if online and averages[0].device != online[0].device:
            self._average.to(online[0].device)
        sharded = [parameter for parameter in online if isinstance(parameter, DTensor)]
        if sharded:
            if not self._shards:
                for average, like in zip(averages, sharded, strict=True):
                    self._shards.append(shard(average, like))
                    average.data = average.new_empty(0)
            averages = [part.to_local() for part in self._shards]
            online = [parameter.to_local() for parameter in sharded]
        torch._foreach_lerp_(averages, [p.float() for p in online], 1 - decay)
        buffers = zip(self._average.buffers(), self._module.buffers(), strict=True)
        for average, buffer in buffers:
            average.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state)

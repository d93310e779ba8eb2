"""AdamW groups, the learning rate as a pure function of the step, clipping, and averaged weights.

There is no scheduler object: `set_lr(optimizer, lr_at(config, step, total))` before each optimizer
step leaves nothing to save.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.profiler import record_function

from lambda24.common.config import config_class
from lambda24.common.data.batches import Batch
from lambda24.common.training.fsdp import shard, shard_optimizer_state

logger = logging.getLogger(__name__)

WARMDOWN_FRACTION = 0.2

Module = TypeVar("Module", bound=nn.Module)


@config_class
class ScheduleConfig:
    """Learning rate and clipping of any optimizer: linear warm-up and one of three schedules.

    Args:
        lr: peak learning rate.
        warmup_steps: steps of linear rise to `lr`.
        schedule: "constant"; "cosine" from the end of the warm-up to the last step; "warmdown" is
            constant, then linear over the last 20 % of the run.
        final_lr_fraction: where cosine and warmdown end, as a fraction of `lr`.
        clip_norm: largest global gradient norm; None only measures it.
    """

    lr: Annotated[float, Field(gt=0)] = 3e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "cosine", "warmdown"] = "constant"
    final_lr_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = None


@config_class
class OptimizerConfig(ScheduleConfig):
    """AdamW; `common.optim.build` has the alternatives.

    Args:
        weight_decay: decoupled decay of matrices and kernels; see `build_optimizer`.
    """

    kind: Literal["adamw"] = "adamw"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.95,
    )
    weight_decay: Annotated[float, Field(ge=0)] = 0.05


def lr_at(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Learning rate of step `step` (from 0) of `total_steps`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    floor = config.final_lr_fraction
    match config.schedule:
        case "constant":
            fraction = 1.0
        case "cosine":
            length = max(1, total_steps - config.warmup_steps)
            progress = min(1.0, (step - config.warmup_steps) / length)
            fraction = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
        case "warmdown":
            length = max(1, round(WARMDOWN_FRACTION * total_steps))
            fraction = floor + (1 - floor) * min(1.0, max(0, total_steps - step) / length)
    return config.lr * fraction


def warn_of_long_warmup(config: ScheduleConfig, total_steps: int) -> None:
    """Logs a warning when a run ends before its warm-up: right for a trial, else a mistake."""
    if config.warmup_steps > total_steps:
        logger.warning(
            "optimizer.warmup_steps is %d, above loop.steps %d: the learning rate ends at %.3g of "
            "optimizer.lr %.3g",
            config.warmup_steps,
            total_steps,
            lr_at(config, total_steps - 1, total_steps),
            config.lr,
        )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Writes `lr` times each group's `lr_scale` (1 where a group has none) into the groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def build_optimizer(
    parameters: nn.Module | Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, in at most two groups per `lr_scale`.

    Weight decay is for weights of two or more dimensions. Vectors (biases, gains), `nn.Embedding`
    tables of a given module, and parameters with the attribute `no_weight_decay = True` get none.
    A parameter's attribute `lr_scale` multiplies its learning rate.

    Raises:
        ValueError: nothing to train.
    """
    tables: set[int] = set()
    if isinstance(parameters, nn.Module):
        embeddings = [m for m in parameters.modules() if isinstance(m, nn.Embedding)]
        tables = {id(embedding.weight) for embedding in embeddings}
        parameters = parameters.named_parameters()
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for _, parameter in parameters:
        if not parameter.requires_grad:
            continue
        exempt = id(parameter) in tables or getattr(parameter, "no_weight_decay", False)
        decays = parameter.ndim >= 2 and not exempt
        scale = float(getattr(parameter, "lr_scale", 1.0))
        groups.setdefault((decays, scale), []).append(parameter)
    if not groups:
        raise ValueError("build_optimizer got no parameter that requires a gradient")
    optimizer = torch.optim.AdamW(
        [
            {
                "params": members,
                "weight_decay": config.weight_decay if decays else 0.0,
                "lr": config.lr * scale,
                "lr_scale": scale,
            }
            for (decays, scale), members in groups.items()
        ],
        betas=config.betas,
        fused=True,
    )
    optimizer.register_load_state_dict_pre_hook(shard_optimizer_state)
    return optimizer


class NotFiniteError(RuntimeError):
    """A number that must be finite is not; the message names it."""


def clip_gradients(
    parameters: nn.Module | Iterable[tuple[str, nn.Parameter]], max_norm: float | None
) -> Tensor:
    """Scales gradients in place so that their global L2 norm is at most `max_norm`.

    Call it after backward and before the optimizer, on every step: it also guards them. Reads the
    device once.

    Returns:
        The norm before clipping, a detached fp32 scalar.

    Raises:
        NotFiniteError: a gradient is NaN or infinite; names the tensors, and changes nothing.
    """
    if isinstance(parameters, nn.Module):
        parameters = parameters.named_parameters()
    named = [(name, p.grad) for name, p in parameters if p.grad is not None]
    if not named:
        return torch.zeros(())
    gradients = [gradient for _, gradient in named]
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)])
    total = torch.linalg.vector_norm(norms)
    if isinstance(norms, DTensor) and isinstance(total, DTensor):
        norms, total = norms.full_tensor(), total.full_tensor()
    if not math.isfinite(float(total)):
        finite = torch.isfinite(norms).tolist()
        bad = [name for (name, _), good in zip(named, finite, strict=True) if not good]
        shown = ", ".join(bad[:4]) + (f" and {len(bad) - 4} more" if len(bad) > 4 else "")
        raise NotFiniteError(f"gradient of {shown or 'all tensors together'} is not finite")
    if max_norm is not None:
        torch._foreach_mul_(gradients, (max_norm / (total + 1e-6)).clamp(max=1.0))
    return total.detach()


def gradient_step(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: ScheduleConfig,
    batches: Sequence[Batch],
    losses_of: Callable[[Batch], dict[str, Tensor]],
    *,
    step: int,
    total_steps: int,
) -> dict[str, Tensor]:
    """One optimizer step over micro-batches of equal size.

    Args:
        module: the prepared module whose parameters `optimizer` holds.
        losses_of: scalars of one micro-batch; "loss" is minimised, the others are reported.

    Returns:
        Detached means of the scalars, "gradient_norm" (before clipping) and "lr".

    Raises:
        NotFiniteError: a gradient is not finite; nothing was updated.
    """
    means: dict[str, Tensor] = {}
    for number, batch in enumerate(batches, start=1):
        last = number == len(batches)
        with nullcontext() if last else accelerator.no_sync(module):
            with record_function("forward"):
                scalars = losses_of(batch)
            with record_function("backward"):
                accelerator.backward(scalars["loss"] / len(batches))
        for name, value in scalars.items():
            share = value.detach() / len(batches)
            means[name] = means[name] + share if name in means else share
    with record_function("optimizer"):
        norm = clip_gradients(module, config.clip_norm)
        lr = lr_at(config, step, total_steps)
        set_lr(optimizer, lr)
        optimizer.step()
        optimizer.zero_grad()
    return {**means, "gradient_norm": norm, "lr": torch.tensor(lr, device=norm.device)}


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

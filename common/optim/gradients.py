"""One optimizer step over micro-batches: gradients are summed, checked, clipped and applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.profiler import record_function

from lambda24.common.data.batches import Batch
from lambda24.common.optim.schedule import ScheduleConfig, lr_at, set_lr


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

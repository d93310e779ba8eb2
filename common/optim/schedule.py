"""The learning rate as a pure function of the step.

There is no scheduler object: `set_lr(optimizer, lr_at(config, step, total))` before each optimizer
step leaves nothing to save.
"""

from __future__ import annotations

import logging
import math
from typing import Annotated, Literal

import torch
from pydantic import Field

from lambda24.common.config import config_class

logger = logging.getLogger(__name__)

WARMDOWN_FRACTION = 0.2


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

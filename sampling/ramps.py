"""What varies with the scale: a number, one number per scale, or a ramp, resolved to a tuple.

Ramps run over the position k / (S - 1) of scale k of S; a pyramid of one scale is at position 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from lambda24.common.config import config_class


@config_class
class LinearRamp:
    """From `start` at the first scale to `end` at the last."""

    kind: Literal["linear"] = "linear"
    start: float
    end: float


@config_class
class CosineRamp:
    """Half a cosine wave from `start` to `end`: slow, fast, slow."""

    kind: Literal["cosine"] = "cosine"
    start: float
    end: float


@config_class
class PowerRamp:
    """start + (end - start) * position^power."""

    kind: Literal["power"] = "power"
    start: float
    end: float
    power: Annotated[float, Field(gt=0)] = 2.0


@config_class
class VarRamp:
    """VAR's `cfg` as standard guidance scales: 1 + cfg * position, none at the first scale.

    VAR (reference code, `autoregressive_infer_cfg`) writes (1 + t) * conditional - t *
    unconditional with t = cfg * k / (S - 1), so its cfg = 1.5 ramps from 1.0 to 2.5.
    """

    kind: Literal["var"] = "var"
    cfg: float


Ramp = Annotated[LinearRamp | CosineRamp | PowerRamp, Field(discriminator="kind")]
Schedule = float | tuple[float, ...] | Ramp
GuidanceRamp = Annotated[LinearRamp | CosineRamp | PowerRamp | VarRamp, Field(discriminator="kind")]
GuidanceSchedule = float | tuple[float, ...] | GuidanceRamp


def resolve_schedule(schedule: GuidanceSchedule, num_scales: int, name: str) -> tuple[float, ...]:
    """One value per scale.

    Args:
        schedule: number, per-scale list, or ramp.
        num_scales: S.
        name: the setting's name in error messages.

    Raises:
        ValueError: a list of another length.
    """
    if isinstance(schedule, (int, float)):
        return (float(schedule),) * num_scales
    if isinstance(schedule, Sequence):
        if len(schedule) != num_scales:
            raise ValueError(
                f"{name} lists {len(schedule)} values, but there are {num_scales} scales"
            )
        return tuple(float(value) for value in schedule)
    positions = [k / max(1, num_scales - 1) for k in range(num_scales)]
    if isinstance(schedule, VarRamp):
        return tuple(1 + schedule.cfg * position for position in positions)
    return tuple(
        schedule.start + (schedule.end - schedule.start) * _progress(schedule, position)
        for position in positions
    )


def _progress(ramp: LinearRamp | CosineRamp | PowerRamp, position: float) -> float:
    """How far along the ramp, in [0, 1]."""
    match ramp:
        case LinearRamp():
            return position
        case CosineRamp():
            return (1 - math.cos(math.pi * position)) / 2
        case PowerRamp():
            return position**ramp.power

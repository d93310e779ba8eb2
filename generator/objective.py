"""Weights of the scales in a generator's loss, its accuracy, and limits that end a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lambda24.common.config import config_class
from lambda24.common.optim.gradients import NotFiniteError
from lambda24.tokenizer import TokenSpec

ScaleWeights = Literal["uniform", "inverse_side"]


@config_class
class GuardConfig:
    """Limits that stop a run, with the name of the last good checkpoint; None: no limit.

    Args:
        gradient_norm: largest global gradient norm, before clipping.
        abs_log_z: largest mean |log Z| of a step's tokens on all processes; of a token of several
            factors (codebooks, bits, coordinates), the norm of theirs.
    """

    gradient_norm: Annotated[float, Field(gt=0)] | None = None
    abs_log_z: Annotated[float, Field(gt=0)] | None = None


class LimitError(NotFiniteError):
    """A number passed its limit of `GuardConfig`; ends a run like one that is not finite."""


def scale_weights(kind: ScaleWeights, spec: TokenSpec) -> Tensor:
    """Loss weight of each position, `(L,)`, of mean one.

    "inverse_side" is Infinity's: proportional to 1 / sqrt(area) of the position's scale.
    """
    sides = torch.tensor(spec.scales, dtype=torch.float32)
    weights = torch.ones_like(sides) if kind == "uniform" else 1 / sides
    weights = weights.repeat_interleave(torch.tensor(spec.scale_lengths))
    return weights / weights.mean()


def accuracies(right: Sequence[Sequence[Tensor]], spec: TokenSpec) -> dict[str, float]:
    """Shares of right tokens: each scale's, and the mean weighed by the scales' lengths.

    Args:
        right: bool tensors of each scale.
    """
    shares = [float(torch.cat(list(found)).float().mean()) for found in right]
    pairs = zip(shares, spec.scale_lengths, strict=True)
    mean = sum(share * length for share, length in pairs) / spec.length
    return {"accuracy": mean} | {f"accuracy_{k}": share for k, share in enumerate(shares)}


def check_limits(guard: GuardConfig, scalars: Mapping[str, Tensor]) -> None:
    """Raises LimitError when a scalar is above its limit; reads the device if there is a limit.

    Give scalars that are equal on all processes.
    """
    limits = {"gradient_norm": guard.gradient_norm, "abs_log_z": guard.abs_log_z}
    for name, limit in limits.items():
        if limit is not None and not float(scalars[name]) <= limit:
            raise LimitError(f"{name} is {float(scalars[name]):.4g}, guard.{name} is {limit}")

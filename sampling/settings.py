"""Sampling settings: guidance, temperature and filters, the same for all scales or one by one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambda24.common.config import config_class, from_dict, to_dict
from lambda24.common.files import replace_text
from lambda24.sampling.ramps import GuidanceSchedule, Schedule, resolve_schedule
from lambda24.tokenizer.tokens import TokenSpec

SETTINGS_FILE = "sampling.json"
# Far outside what is of use, and far inside what keeps logits finite in fp32.
MAX_GUIDANCE = 1e4
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-5, 1e5


@dataclass(frozen=True)
class ScaleSettings:
    """How one scale is drawn; see `SamplingConfig`."""

    guidance_scale: float
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None

    @property
    def filters(self) -> bool:
        """Whether some codes may be forbidden."""
        return self.top_k is not None or self.top_p not in (None, 1.0) or bool(self.min_p)


@config_class
class SamplingConfig:
    """How tokens are drawn; every field a number, a list with one entry per scale, or a ramp.

    Args:
        guidance_scale: s of s * conditional + (1 - s) * unconditional; 1 is none. The ramp
            `{kind: var, cfg: ...}` is VAR's convention.
        temperature: divides the guided logits.
        top_k: keep the k best codes; fractional values of a ramp are rounded. None keeps all.
        top_p: keep the best codes that hold this much probability. None keeps all.
        min_p: keep codes at least this much as probable as the best one. None keeps all.
    """

    guidance_scale: GuidanceSchedule = 1.0
    temperature: Schedule = 1.0
    top_k: Schedule | None = None
    top_p: Schedule | None = None
    min_p: Schedule | None = None

    def resolve(self, spec: TokenSpec) -> tuple[ScaleSettings, ...]:
        """Settings of each scale of a pyramid.

        Raises:
            ValueError: list of another length than the scales, guidance_scale outside
                [-10^4, 10^4], temperature outside [10^-5, 10^5], top_p outside (0, 1], min_p
                outside [0, 1], top_k not an integer in [1, number of codes].
        """
        count = spec.num_scales
        guidance = resolve_schedule(self.guidance_scale, count, "guidance_scale")
        for value in guidance:
            if not abs(value) <= MAX_GUIDANCE:
                raise ValueError(
                    f"guidance_scale must be in [-{MAX_GUIDANCE:g}, {MAX_GUIDANCE:g}], got {value}"
                )
        temperature = resolve_schedule(self.temperature, count, "temperature")
        if min(temperature) <= 0:
            raise ValueError(f"temperature must be positive, got {min(temperature)}")
        for value in temperature:
            if not MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
                raise ValueError(
                    f"temperature must be in [{MIN_TEMPERATURE:g}, {MAX_TEMPERATURE:g}], "
                    f"got {value}"
                )
        nucleus: Sequence[float | None] = (None,) * count
        if self.top_p is not None:
            nucleus = values = resolve_schedule(self.top_p, count, "top_p")
            for value in values:
                if not 0 < value <= 1:
                    raise ValueError(f"top_p must be in (0, 1], got {value}")
        relative: Sequence[float | None] = (None,) * count
        if self.min_p is not None:
            relative = values = resolve_schedule(self.min_p, count, "min_p")
            for value in values:
                if not 0 <= value <= 1:
                    raise ValueError(f"min_p must be in [0, 1], got {value}")
        kept: Sequence[int | None] = (None,) * count
        if self.top_k is not None:
            kept = self._resolve_top_k(self.top_k, spec)
        rows = zip(guidance, temperature, kept, nucleus, relative, strict=True)
        return tuple(ScaleSettings(*row) for row in rows)

    @staticmethod
    def _resolve_top_k(schedule: Schedule, spec: TokenSpec) -> tuple[int, ...]:
        values = resolve_schedule(schedule, spec.num_scales, "top_k")
        is_ramp = not isinstance(schedule, (int, float, tuple, list))
        num_codes = max(spec.codebook_sizes)
        for value in values:
            # A ramp between huge numbers overflows.
            in_range = math.isfinite(value) and 1 <= round(value) <= num_codes
            if not in_range or not (is_ramp or value == round(value)):
                raise ValueError(f"top_k must be an integer in [1, {num_codes}], got {value:g}")
        return tuple(round(value) for value in values)


def override(config: SamplingConfig, overrides: dict[str, Any]) -> SamplingConfig:
    """A config with some fields replaced by plain values (numbers, lists, dicts) or ramps.

    Raises:
        ValueError: unknown field, or a value of the wrong type.
    """
    plain = {
        name: to_dict(value) if hasattr(value, "__pydantic_fields__") else value
        for name, value in overrides.items()
    }
    return from_dict(SamplingConfig, {**to_dict(config), **plain})


def read_settings(folder: Path) -> SamplingConfig | None:
    """A pipeline folder's settings, or None where it has none.

    Raises:
        ValueError: names the file and the field that is wrong.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return None
    try:
        return from_dict(SamplingConfig, json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def save_settings(settings: SamplingConfig, folder: Path) -> None:
    """Writes what `read_settings` reads."""
    replace_text(folder / SETTINGS_FILE, json.dumps(to_dict(settings), indent=2) + "\n")

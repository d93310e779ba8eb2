"""What an evaluation finds: metrics with their protocol, as JSON and as a row of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lambda24.common.metrics.pairs import save_metrics


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics with their protocol.

    `errors` holds standard errors by metric and `intervals` their 95% intervals. With resamples all
    are over the generated images (`common.metrics.intervals`). Without, only fractions have one,
    binomial: precision over generated images, recall and coverage over reference images.
    `sfid` has none.
    """

    gfid: float
    sfid: float | None
    inception_score: float | None
    precision: float
    recall: float
    density: float
    coverage: float
    clipped_density: float
    clipped_coverage: float
    kid_mean: float
    kid_std: float
    errors: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; numbers that are not finite, which JSON does not have, become None."""
        plain = asdict(self)
        numbers = {name: _or_none(value) for name, value in plain.items() if name != "protocol"}
        return {**plain, **numbers}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EvaluationResult:
        """The inverse of `to_dict`, with NaN where a metric that is always there is None.

        Clipped density and coverage are NaN in results of versions that did not have them.
        """
        plain = {"clipped_density": None, "clipped_coverage": None, **data}
        for name in plain.keys() - {"sfid", "inception_score", "protocol"}:
            plain[name] = _or_nan(plain[name])
        return cls(**plain)

    def save(self, path: str | Path) -> None:
        """Writes JSON, atomically."""
        save_metrics(self.to_dict(), path)

    def cells(self) -> dict[str, str]:
        """The metrics as they stand in tables, by heading."""
        return {
            "gFID": self._cell("gfid", ".2f"),
            "sFID": self._cell("sfid", ".2f"),
            "IS": self._cell("inception_score", ".2f"),
            "precision": self._cell("precision", ".3f"),
            "recall": self._cell("recall", ".3f"),
            "density": self._cell("density", ".3f"),
            "coverage": self._cell("coverage", ".3f"),
            "clipped density": self._cell("clipped_density", ".3f"),
            "clipped coverage": self._cell("clipped_coverage", ".3f"),
            "KID x 1000": self._cell("kid_mean", ".3f", factor=1000),
        }

    def _cell(self, name: str, form: str, factor: float = 1.0) -> str:
        value = getattr(self, name)
        if value is None or not math.isfinite(value):
            return "-"
        text = without_negative_zero(format(factor * value, form))
        low, high = self.intervals.get(name, (math.nan, math.nan))
        half = factor * (high - low) / 2
        return f"{text} ± {format(half, form)}" if math.isfinite(half) else text


def without_negative_zero(text: str) -> str:
    """A formatted number, "0.00" in place of "-0.00"."""
    return text.removeprefix("-") if text.strip("-0.") == "" else text


def markdown(results: Mapping[str, EvaluationResult]) -> str:
    """A table with a row for each named result, with extractor and counts.

    ± is half a 95% interval where known.
    """
    rows: list[list[str]] = []
    for name, result in results.items():
        extractor = result.protocol["extractor"]
        cells = {
            "model": name,
            **result.cells(),
            "extractor": f"{extractor['name']} ({extractor['resize']})",
            "images": str(result.protocol["num_images"]),
            "reference images": str(result.protocol["reference"]["num_images"]),
        }
        if not rows:
            rows += [list(cells), ["---"] * len(cells)]
        rows.append(list(cells.values()))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _or_none(value: Any) -> Any:
    """Nested numbers; those that are not finite become None."""
    if isinstance(value, Mapping):
        return {name: _or_none(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_or_none(part) for part in value)
    return None if value is None or not math.isfinite(value) else value


def _or_nan(value: Any) -> Any:
    """Nested numbers; None becomes NaN."""
    if isinstance(value, Mapping):
        return {name: _or_nan(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_or_nan(part) for part in value)
    return math.nan if value is None else value

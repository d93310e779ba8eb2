"""What a sweep shows: a Markdown table, best gFID first, and a plot of guidance against quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lambda24.common.config import to_dict
from lambda24.sampling.evaluation.sweep import FIELDS, SweepRow, schedule_text
from lambda24.sampling.ramps import resolve_schedule
from lambda24.scripts.reports.plots import color, legend_above, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS = (
    "gFID",
    "IS",
    "precision",
    "recall",
    "density",
    "coverage",
    "clipped density",
    "clipped coverage",
    "KID x 1000",
)
NAMES = {
    "guidance_scale": "guidance",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "temperature": "temperature",
}


def ranked(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """Best gFID first, those without a finite one last."""
    return sorted(rows, key=lambda row: (not math.isfinite(row.result.gfid), row.result.gfid))


def best(rows: Sequence[SweepRow]) -> SweepRow | None:
    """The row of least gFID, or None where no gFID is finite."""
    return next((row for row in ranked(rows) if math.isfinite(row.result.gfid)), None)


def setting(row: SweepRow) -> dict[str, Any]:
    """The row's setting as plain data for a file, top-k in integers (`900`, not `900.0`)."""
    found = to_dict(row.sampling)
    return {**found, "top_k": _whole(found["top_k"])}


def _whole(value: Any) -> Any:
    """Whole floats as integers, inside lists and ramps too."""
    if isinstance(value, dict):
        return {key: _whole(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def table(rows: Sequence[SweepRow]) -> str:
    """One row a setting; settings that no row changes are left out, but for guidance and top-k."""
    fields = [
        name
        for name in FIELDS
        if name in ("guidance_scale", "top_k") or len(_values(rows, name)) > 1
    ]
    heads = [NAMES[name] for name in fields]
    lines = [[*heads, *METRICS], ["---"] * (len(heads) + len(METRICS))]
    for row in ranked(rows):
        cells = row.result.cells()
        settings = [schedule_text(getattr(row.sampling, name)) for name in fields]
        lines.append(settings + [cells[name] for name in METRICS])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Point:
    """One setting: mean guidance over the scales, its text, and where it lies."""

    guidance: float
    text: str
    is_constant: bool
    gfid: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Line:
    """Settings that differ in guidance alone, by guidance."""

    name: str
    points: tuple[Point, ...]


def lines(rows: Sequence[SweepRow], num_scales: int) -> list[Line]:
    """The rows that can be drawn as lines, in the order of their first rows."""
    rows = [
        row
        for row in rows
        if all(map(math.isfinite, (row.result.gfid, row.result.precision, row.result.recall)))
    ]
    others = [name for name in FIELDS if name != "guidance_scale" and len(_values(rows, name)) > 1]
    found: dict[str, list[Point]] = {}
    for row in rows:
        parts = [f"{NAMES[name]} {schedule_text(getattr(row.sampling, name))}" for name in others]
        found.setdefault(", ".join(parts), []).append(_point(row, num_scales))
    return [
        Line(name, tuple(sorted(points, key=lambda point: point.guidance)))
        for name, points in found.items()
    ]


def draw(rows: Sequence[SweepRow], num_scales: int) -> Figure:
    """gFID over guidance, and precision over recall with each point's guidance."""
    found = lines(rows, num_scales)
    figure, (left, right) = new_figure(2, columns=2)
    for number, line in enumerate(found):
        _draw_line(left, right, line, color(number))
    has_ramps = any(not point.is_constant for line in found for point in line.points)
    left.set_xlabel("guidance scale" + (" (mean over scales)" if has_ramps else ""))
    left.set_ylabel("gFID (lower is better)")
    right.set_xlabel("recall")
    right.set_ylabel("precision")
    right.set_title("numbers: guidance scale", fontsize="small")
    right.margins(0.12)
    entries: list[tuple[str, dict[str, object]]] = [
        (line.name, {"color": color(number), "marker": "o"})
        for number, line in enumerate(found)
        if line.name
    ]
    if has_ramps:
        style: dict[str, object] = {"color": "black", "marker": "o", "linestyle": "none"}
        entries.append(("guidance varies with the scale", {**style, "markerfacecolor": "white"}))
    if entries:
        legend_above(figure, entries)
    return figure


def _draw_line(left: Axes, right: Axes, line: Line, shade: str) -> None:
    constant = [point for point in line.points if point.is_constant]
    varying = [point for point in line.points if not point.is_constant]
    left.plot([p.guidance for p in constant], [p.gfid for p in constant], "o-", color=shade)
    right.plot([p.recall for p in constant], [p.precision for p in constant], "o-", color=shade)
    hollow: dict[str, Any] = {
        "color": shade,
        "markerfacecolor": "white",
        "linestyle": "none",
        "marker": "o",
    }
    left.plot([p.guidance for p in varying], [p.gfid for p in varying], **hollow)
    right.plot([p.recall for p in varying], [p.precision for p in varying], **hollow)
    for point in varying:
        _label(left, point.guidance, point.gfid, point.text, shade)
    for point in line.points:
        _label(right, point.recall, point.precision, point.text, shade)


def _label(axes: Axes, x: float, y: float, text: str, shade: str) -> None:
    from matplotlib.patheffects import withStroke

    axes.annotate(
        text,
        (x, y),
        xytext=(6, 5),
        textcoords="offset points",
        fontsize="small",
        color=shade,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )


def _point(row: SweepRow, num_scales: int) -> Point:
    schedule = row.sampling.guidance_scale
    values = resolve_schedule(schedule, num_scales, "guidance_scale")
    mean = sum(values) / len(values)
    is_constant = len(set(values)) == 1
    return Point(
        guidance=mean,
        text=f"{mean:g}" if is_constant else schedule_text(schedule),
        is_constant=is_constant,
        gfid=row.result.gfid,
        precision=row.result.precision,
        recall=row.result.recall,
    )


def _values(rows: Sequence[SweepRow], name: str) -> set[str]:
    return {schedule_text(getattr(row.sampling, name)) for row in rows}

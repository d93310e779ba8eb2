"""Training curves of run folders: what `metrics.jsonl` holds, arranged in panels, and drawn.

A key `name_k` is the value of scale k; `eval/name` was measured on held-out images. One run shows
all scales of a name in one panel; several runs show one key a panel, and one line a run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambda24.common.training.run_folder import RunFolder
from lambda24.scripts.reports.plots import color, legend_above, log_axis, new_figure, ordered_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HELD_OUT = "eval/"
NOT_PLOTTED = ("step", "seconds", "evaluation_share", "saving_share")  # unless asked for
LAST = ("lr", "gradient_norm", "images_per_second", "data_wait")
LOG_RATIO = 4.0
MARKER: Mapping[str, object] = {"marker": "o", "markersize": 3.5}


@dataclass(frozen=True)
class Curve:
    """Values over optimizer steps; not a number where the run wrote none that is finite."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


Curves = Mapping[str, Curve]


@dataclass(frozen=True)
class Quantity:
    """How a key is written.

    Args:
        is_log: logarithmic axis where the values span a factor of `LOG_RATIO`; also needs values
            above 0.
        from_zero: the axis begins at 0.
    """

    title: str
    unit: str = "value"
    is_log: bool = True
    from_zero: bool = False


QUANTITIES = {
    "loss": Quantity("loss (all terms)", "loss"),
    "nll": Quantity("negative log-likelihood", "nats per token", is_log=False),
    "abs_log_z": Quantity("|log Z|", "nats"),
    "accuracy": Quantity("most likely token is right", "share of tokens"),
    "l1": Quantity("L1 distance of images in [-1, 1]", "mean |difference|"),
    "l2": Quantity("L2 distance of images in [-1, 1]", "mean square"),
    "perceptual": Quantity("perceptual distance", "distance"),
    "quantizer": Quantity("quantizer loss", "loss"),
    "prefix": Quantity("reconstruction loss of prefixes", "loss"),
    "g_loss": Quantity("adversarial loss of the tokenizer", "loss"),
    "g_weight": Quantity("weight of the adversarial loss", "weight"),
    "vf_weight": Quantity("weight of the alignment loss", "weight"),
    "d_loss": Quantity("discriminator loss", "loss"),
    "d_lr": Quantity("discriminator learning rate", "learning rate", is_log=False, from_zero=True),
    "d_gradient_norm": Quantity("discriminator gradient norm", "norm"),
    "psnr": Quantity("PSNR", "dB", is_log=False),
    "residual_norm": Quantity("norm of residuals", "norm"),
    "codes": Quantity("different codes", "codes"),
    "entropy_bits": Quantity("entropy of codes", "bits per token", is_log=False),
    "perplexity": Quantity("perplexity of codes", "codes"),
    "window_usage": Quantity("codes used between log lines", "share of codebook"),
    "window_entropy_bits": Quantity("entropy between log lines", "bits per token", is_log=False),
    "lr": Quantity("learning rate", "learning rate", is_log=False, from_zero=True),
    "gradient_norm": Quantity("gradient norm before clipping", "norm"),
    "images_per_second": Quantity("throughput", "images per second", is_log=False, from_zero=True),
    "data_wait": Quantity("wait for data", "share of training time", is_log=False, from_zero=True),
}


@dataclass(frozen=True)
class Line:
    """A curve and whose it is: number of a run or scale."""

    curve: Curve
    owner: int
    is_held_out: bool


@dataclass(frozen=True)
class Panel:
    """Lines on one pair of axes; their owners are scales or runs."""

    title: str
    unit: str
    is_log: bool
    from_zero: bool
    has_scales: bool
    lines: tuple[Line, ...]


def read_curves(run: str | Path) -> dict[str, Curve]:
    """All curves of a run folder by key.

    Raises:
        ValueError: no such folder, or no metrics there.
    """
    folder = RunFolder(run)
    if not folder.path.is_dir():
        raise ValueError(f"{run} is not a run folder: no such folder exists")
    records = folder.metrics()
    if not records:
        raise ValueError(f"{run} is not a run folder: {folder.metrics_file.name} has no line")
    return curves(records)


def curves(records: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Curves of log records, which have a `step` and some of the keys."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for key, value in record.items():
            number = math.nan if value is None else float(value)
            found.setdefault(key, []).append((int(record["step"]), number))
    found.pop("step", None)
    return {key: Curve(*zip(*sorted(pairs), strict=True)) for key, pairs in found.items()}


def run_panels(run: Curves, keys: Sequence[str] | None = None) -> list[Panel]:
    """Panels of one run.

    Args:
        keys: names, `name` for `name_0`, `name_1`, ... too; None for all.

    Raises:
        ValueError: a key that the run does not have.
    """
    panels: dict[tuple[str, bool, bool], list[Line]] = {}
    for name in choose([run], keys, with_scales=True):
        family, scale = split_scale(name)
        for prefix in ("", HELD_OUT):
            if prefix + name in run:
                is_held_out = bool(prefix)
                # Held-out lines of all scales beside those of training would be too many.
                place = (family, scale is not None, scale is not None and is_held_out)
                line = Line(run[prefix + name], scale or 0, is_held_out)
                panels.setdefault(place, []).append(line)
    return [
        _panel(family, lines, (", per scale" if per_scale else "") + (", held out" * held_out))
        for (family, per_scale, held_out), lines in panels.items()
    ]


def comparison_panels(runs: Sequence[Curves], keys: Sequence[str] | None = None) -> list[Panel]:
    """Panels with a line for each run that has the key.

    Args:
        keys: names; None for all that are not of one scale.

    Raises:
        ValueError: a key that no run has.
    """
    panels = []
    for name in choose(runs, keys, with_scales=False):
        family, scale = split_scale(name)
        lines = [
            Line(run[prefix + name], number, bool(prefix))
            for number, run in enumerate(runs)
            for prefix in ("", HELD_OUT)
            if prefix + name in run
        ]
        panels.append(_panel(family, lines, "" if scale is None else f", scale {scale}"))
    return panels


def choose(runs: Sequence[Curves], keys: Sequence[str] | None, *, with_scales: bool) -> list[str]:
    """Names to plot, without `eval/`: the wanted ones, or all in the order of the log.

    Args:
        with_scales: all keys of single scales, too.
    """
    names = list(dict.fromkeys(key.removeprefix(HELD_OUT) for run in runs for key in run))
    if keys is None:
        shown = [name for name in names if with_scales or split_scale(name)[1] is None]
        shown = [name for name in shown if name not in (*NOT_PLOTTED, *LAST)]
        return shown + [name for name in LAST if name in names]
    chosen: list[str] = []
    for key in (key.removeprefix(HELD_OUT) for key in keys):
        family = [name for name in names if split_scale(name)[0] == key]
        exact = [name for name in names if name == key]
        found = list(dict.fromkeys(exact + family)) if with_scales else exact or family
        if not found:
            raise ValueError(f"no run has the key {key!r}; there are: {', '.join(names)}")
        chosen += found
    return list(dict.fromkeys(chosen))


def split_scale(name: str) -> tuple[str, int | None]:
    """`nll_3` is (`nll`, 3), other names have no scale."""
    match = re.fullmatch(r"(.+)_(\d+)", name)
    return (name, None) if match is None else (match[1], int(match[2]))


def _panel(family: str, lines: Sequence[Line], suffix: str) -> Panel:
    quantity = QUANTITIES.get(family, Quantity(family))
    values = [v for line in lines for v in line.curve.values if math.isfinite(v)]
    spans = bool(values) and 0 < LOG_RATIO * min(values) <= max(values)
    return Panel(
        title=quantity.title + suffix,
        unit=quantity.unit,
        is_log=quantity.is_log and spans,
        from_zero=quantity.from_zero,
        has_scales=suffix.startswith(", per scale"),
        lines=tuple(lines),
    )


def draw_run(panels: Sequence[Panel], sides: Sequence[int] | None = None) -> Figure:
    """Figure of one run.

    Args:
        sides: side of each scale, for the legend.
    """
    scaled = [line for panel in panels if panel.has_scales for line in panel.lines]
    shades = ordered_colors(1 + max((line.owner for line in scaled), default=-1))
    entries: list[tuple[str, dict[str, object]]] = []
    if any(line.is_held_out for panel in panels for line in panel.lines):
        entries = [("training", _style(color(0), False)), ("held out", _style(color(1), True))]
    for k, shade in enumerate(shades):
        side = f" ({sides[k]}x{sides[k]})" if sides is not None and k < len(sides) else ""
        entries.append((f"scale {k}{side}", _style(shade, False)))
    return _draw(
        panels,
        lambda panel, line: shades[line.owner] if panel.has_scales else color(line.is_held_out),
        entries,
    )


def draw_comparison(panels: Sequence[Panel], names: Sequence[str]) -> Figure:
    """Figure of several runs with these names."""
    entries = [(name, _style(color(number), False)) for number, name in enumerate(names)]
    if any(line.is_held_out for panel in panels for line in panel.lines):
        entries.append(("held out", _style("black", True)))
    return _draw(panels, lambda panel, line: color(line.owner), entries)


def _draw(
    panels: Sequence[Panel],
    shade: Callable[[Panel, Line], str],
    entries: Sequence[tuple[str, dict[str, object]]],
) -> Figure:
    if not panels:
        raise ValueError("there is nothing to draw: no value but the time was logged")
    figure, axes = new_figure(len(panels), columns=3)
    last = max(line.curve.steps[-1] for panel in panels for line in panel.lines)
    for panel, place in zip(panels, axes, strict=True):
        for line in panel.lines:
            style: dict[str, Any] = _style(shade(panel, line), line.is_held_out)
            if len(line.curve.steps) == 1:  # a line of one point is invisible
                style |= MARKER
            place.plot(line.curve.steps, line.curve.values, **style)
        _label(place, panel, last)
    if entries:
        legend_above(figure, entries)
    return figure


def _style(shade: str, is_held_out: bool) -> dict[str, object]:
    style = {"color": shade, "linewidth": 1.3}
    return {**style, **MARKER, "linestyle": "--"} if is_held_out else style


def _label(axes: Axes, panel: Panel, last_step: int) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.set_title(panel.title, fontsize="medium")
    axes.set_xlabel("step")
    axes.set_ylabel(panel.unit)
    if panel.is_log:
        log_axis(axes)
    elif panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.set_xlim(-0.02 * last_step, 1.03 * last_step)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))

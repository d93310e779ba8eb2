"""Figures of matplotlib (extra `plots`) with one look; drawn without a display or global state."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart; black is kept for other uses.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
PANEL = (4.6, 3.1)  # inches
DPI = 150


def check_plots() -> None:
    """Raises ValueError with the command that installs matplotlib where it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError('plots need: pip install "lambda24[plots]"') from error


def new_figure(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, row by row.

    Raises:
        ValueError: matplotlib is missing.
    """
    check_plots()
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.5), layout="constrained")
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(count)]
    for panel in axes:
        panel.grid(color="#E5E5E5", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def color(number: int) -> str:
    """Of the line with this number; they repeat after seven."""
    return COLORS[number % len(COLORS)]


def ordered_colors(count: int) -> list[str]:
    """Dark to light, for things with an order such as scales."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    shades = colormaps["viridis"]
    return [to_hex(shades(0.9 * k / max(1, count - 1))) for k in range(count)]


def log_axis(axes: Axes) -> None:
    """A logarithmic y axis that says 0.2 and 6,000, not 2 x 10^-1."""
    from matplotlib.ticker import FuncFormatter

    def text(value: float, _: object) -> str:
        low, high = axes.get_ylim()
        decades = math.log10(high / low)
        shown = (1,) if decades > 2.5 else (1, 2, 5) if decades > 0.7 else range(1, 10)
        return f"{value:,g}" if value > 0 and int(f"{value:.0e}"[0]) in shown else ""

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(text))
    axes.yaxis.set_minor_formatter(FuncFormatter(text))


def legend_above(figure: Figure, entries: Sequence[tuple[str, dict[str, object]]]) -> None:
    """One legend over all panels, where it covers no line.

    Args:
        entries: names, and the properties of the line that stands for each.
    """
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name, **style) for name, style in entries]  # type: ignore[arg-type]
    widths = [0.09 * len(name) + 0.6 for name, _ in entries]  # inches, roughly
    room = figure.get_figwidth()
    columns = len(entries) if sum(widths) <= room else max(1, int(room / max(widths)))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG under a temporary name and renames it; makes parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.png")
    figure.savefig(temporary, dpi=DPI)
    os.replace(temporary, path)

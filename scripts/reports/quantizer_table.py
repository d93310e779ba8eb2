"""What a comparison shows: a Markdown table and dot plots (SVG) of means and spreads over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from lambda24.scripts.reports.quantizer_comparison import ComparisonResult

# Field, heading, format, and whether more is better (None: neither).
COLUMNS: tuple[tuple[str, str, str, bool | None], ...] = (
    ("bits", "bits", ".2f", None),
    ("entropy_bits", "entropy bits", ".2f", None),
    ("usage", "usage", ".3f", None),
    ("perplexity", "perplexity", ".0f", None),
    ("psnr", "PSNR", ".2f", True),
    ("ssim", "SSIM", ".3f", True),
    ("perceptual", "perceptual", ".4f", False),
    ("rfid", "rFID", ".2f", False),
    ("images_per_second", "images/s", ".0f", None),
    ("peak_memory_mib", "peak MiB", ".0f", None),
)
PLOTTED = ("psnr", "ssim", "perceptual", "rfid", "entropy_bits")


def grouped(results: Sequence[ComparisonResult]) -> dict[str, dict[str, list[ComparisonResult]]]:
    """Results by group and name, in the order in which they come."""
    groups: dict[str, dict[str, list[ComparisonResult]]] = {}
    for result in results:
        groups.setdefault(result.group, {}).setdefault(result.name, []).append(result)
    return groups


def values(results: Sequence[ComparisonResult], field: str) -> list[float]:
    """One field of several seeds, without those that did not measure it."""
    found = (getattr(result, field) for result in results)
    return [float(value) for value in found if value is not None]


def table(results: Sequence[ComparisonResult]) -> str:
    """One Markdown table a group: mean ± sample standard deviation over seeds."""
    shown = [column for column in COLUMNS if values(results, column[0])]
    lines = []
    for group, rows in grouped(results).items():
        tokens = sorted({int(result.num_tokens) for row in rows.values() for result in row})
        lines += [
            f"### {group}",
            "",
            f"Held-out tokens: {', '.join(f'{count:,}' for count in tokens)}; "
            f"seeds: {max(len(row) for row in rows.values())}.",
            "",
            "| quantizer | " + " | ".join(heading for _, heading, _, _ in shown) + " |",
            "|---|" + "---:|" * len(shown),
        ]
        for name, row in rows.items():
            cells = [_cell(values(row, field), form) for field, _, form, _ in shown]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(numbers: Sequence[float], form: str) -> str:
    if not numbers:
        return ""
    mean = format(statistics.mean(numbers), form)
    if len(numbers) < 2 or max(numbers) == min(numbers):
        return mean
    return f"{mean} ± {format(statistics.stdev(numbers), form)}"


def dot_plot(results: Sequence[ComparisonResult], field: str) -> str:
    """SVG: a row a contender, a dot a seed, a bar at the mean; the best of each group on top."""
    heading, form, better = next(
        (heading, form, better) for name, heading, form, better in COLUMNS if name == field
    )
    rows: list[tuple[str, list[float]]] = []
    for group, members in grouped(results).items():
        scored = [(name, values(row, field)) for name, row in members.items()]
        scored = [(name, numbers) for name, numbers in scored if numbers]
        scored.sort(key=lambda item: statistics.mean(item[1]), reverse=better is not False)
        rows += [(group, []), *scored]
    everything = [number for _, numbers in rows for number in numbers]
    if not everything:
        raise ValueError(f"no result has the field {field!r}")
    low, high = min(everything), max(everything)
    margin = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    left, width, height = 190, 420, 22

    def place(number: float) -> float:
        return left + width * (number - low) / (high - low)

    arrow = {True: " (higher is better)", False: " (lower is better)", None: ""}[better]
    body = [f'<text x="{left}" y="18" font-weight="bold">{escape(heading + arrow)}</text>']
    for number, (name, numbers) in enumerate(rows):
        y = 40 + height * number
        if not numbers:
            body.append(f'<text x="8" y="{y + 4}" font-weight="bold">{escape(name)}</text>')
            continue
        mean = statistics.mean(numbers)
        body += [
            f'<line x1="{left}" x2="{left + width}" y1="{y}" y2="{y}" stroke="#ddd"/>',
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{place(mean) - 1.5:.1f}" y="{y - 7}" width="3" height="14" fill="#c33"/>',
            *(
                f'<circle cx="{place(n):.1f}" cy="{y}" r="4" fill="#369" fill-opacity="0.6"/>'
                for n in numbers
            ),
            f'<text x="{left + width + 10}" y="{y + 4}">{mean:{form}}</text>',
        ]
    size = f'width="{left + width + 80}" height="{40 + height * len(rows)}"'
    style = 'font-family="sans-serif" font-size="12"'
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', *body, "</svg>", ""]
    )

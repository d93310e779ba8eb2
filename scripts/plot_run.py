"""Plots of run folders.

python scripts/plot_run.py RUN [--output FOLDER]
    curves.png: losses, scores, learning rate, gradient norm, throughput, one line per scale
    of a tokenizer's run also usage.png and prefixes.png, from images of the run's held-out data
python scripts/plot_run.py RUN1 RUN2 ... --keys gradient_norm abs_log_z [--output FOLDER]
    comparison.png: the runs' curves over each other

Pictures go to RUN/plots, those of several runs to plots.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lambda24.common.command_line import run_program
from lambda24.common.config import from_dict, read_yaml_text
from lambda24.common.data.dataset import ImageDataset, load_dataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.images import save_image
from lambda24.common.training.run_folder import RunFolder
from lambda24.scripts.reports.curves import (
    comparison_panels,
    draw_comparison,
    draw_run,
    read_curves,
    run_panels,
)
from lambda24.scripts.reports.plots import check_plots, save_figure
from lambda24.scripts.reports.usage import draw_usage, encode_images
from lambda24.tokenizer.evaluation import prefix_pictures
from lambda24.tokenizer.model import ImageTokenizer


def main(argv: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(argv)
    check_plots()
    runs = [Path(run) for run in options.runs]
    if len(set(runs)) < len(runs):
        raise ValueError(f"a run is given twice: {', '.join(map(str, runs))}")
    if len(runs) > 1:
        folder = Path(options.output or "plots")
        panels = comparison_panels([read_curves(run) for run in runs], options.keys)
        save_figure(draw_comparison(panels, run_names(runs)), folder / "comparison.png")
        print(f"comparison of {len(runs)} runs: {folder / 'comparison.png'}")
        return
    (run,) = runs
    folder = Path(options.output) if options.output else run / "plots"
    panels = run_panels(read_curves(run), options.keys)
    save_figure(draw_run(panels, scale_sides(run)), folder / "curves.png")
    print(f"{len(panels)} panels: {folder / 'curves.png'}")
    if options.keys is None and is_tokenizer_run(run):
        plot_tokenizer(run, folder, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--keys", nargs="+", help="of metrics.jsonl; default: all")
    parser.add_argument("--output", metavar="FOLDER", help="where the pictures go")
    parser.add_argument("--data", metavar="PATH", help="where the run's data is now")
    parser.add_argument("--images", type=int, default=512, help="encoded for usage.png")
    parser.add_argument("--pictures", type=int, default=8, help="columns of prefixes.png")
    return parser


def plot_tokenizer(run: Path, folder: Path, options: argparse.Namespace) -> None:
    """Encodes held-out images of the run's data: usage.png and prefixes.png."""
    for name in ("images", "pictures"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(options, name)}")
    image_tokenizer = ImageTokenizer.from_pretrained(run)
    dataset = held_out_data(run, options.data)
    tokens = encode_images(image_tokenizer, dataset, options.images)
    save_figure(draw_usage(tokens), folder / "usage.png")
    print(f"codes of {len(tokens.indices)} held-out images: {folder / 'usage.png'}")
    save_image(prefix_pictures(image_tokenizer, dataset, options.pictures), folder / "prefixes.png")
    print(f"prefixes: {folder / 'prefixes.png'}")


def held_out_data(run: Path, path: str | None) -> ImageDataset:
    """The evaluation images of the run's own data, which may have moved to `path`."""
    config = from_dict(DataConfig, _config(run)["data"])
    return load_dataset(config if path is None else replace(config, path=path), train=False)


def is_tokenizer_run(run: Path) -> bool:
    """Whether stage 1 was trained here, and has saved a model."""
    return (run / ImageTokenizer.folder_name).is_dir() and not (run / "generator").is_dir()


def scale_sides(run: Path) -> tuple[int, ...] | None:
    """Sides of the scales, where the run has a tokenizer yet."""
    file = run / ImageTokenizer.folder_name / "config.json"
    if not file.is_file():
        return None
    return tuple(json.loads(file.read_text(encoding="utf-8"))["pyramid"]["scales"])


def run_names(runs: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as tell them apart."""
    parts = [run.resolve().parts for run in runs]
    depth = 1
    while len({names[-depth:] for names in parts}) < len({tuple(names) for names in parts}):
        depth += 1
    return ["/".join(names[-depth:]) for names in parts]


def _config(run: Path) -> dict[str, Any]:
    file = RunFolder(run).config_file
    if not file.is_file():
        raise ValueError(f"{run} has no {file.name}, which says what its data is")
    config: dict[str, Any] = read_yaml_text(file.read_text(encoding="utf-8"))
    return config


if __name__ == "__main__":
    run_program(main)

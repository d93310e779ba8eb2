"""Tries sampling settings: gFID, IS, precision and recall of each, a table and a plot.

[accelerate launch] python scripts/sweep.py PIPELINE configs/evaluation/cifar10.yaml
    'sweep.guidance_scale=[1, 1.5, 2, {kind: linear, start: 1, end: 3}]'
    'sweep.top_k=[null, 900]' sweep.num_images=2000 [key=value ...]

The config is one of scripts/evaluate_generator.py, so the settings are measured as the final
evaluation measures them, but on images of other seeds. The output folder (out=..., by default
PIPELINE/sweep) gets rows.jsonl, as the rows come; the same command again goes on. Then table.md,
sweep.png, and best.yaml, the setting of least gFID, for scripts/sample.py --config.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lambda24.common.command_line import run_program
from lambda24.common.config import load_config, save_config
from lambda24.common.config_keys import PrintKeys
from lambda24.common.data.dataset import load_dataset
from lambda24.common.files import replace_text
from lambda24.common.training.launch import patient_accelerator
from lambda24.sampling.evaluation.sweep import SweepRun, describe, sweep
from lambda24.sampling.pipeline import Pipeline
from lambda24.scripts.reports.plots import check_plots, save_figure
from lambda24.scripts.reports.sweep import best, draw, ranked, setting, table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("pipeline", help="folder with tokenizer/ and generator/, or hub id")
    parser.add_argument("config", help="YAML file of configs/evaluation")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--keys", action=PrintKeys, config_class=SweepRun)
    arguments = parser.parse_intermixed_args(argv)
    run = load_config(SweepRun, arguments.config, arguments.overrides)
    check_plots()
    accelerator = patient_accelerator()
    pipeline = Pipeline.from_pretrained(arguments.pipeline).to(accelerator.device)
    model = Path(arguments.pipeline)
    folder = (
        Path(run.out) if run.out is not None else (model if model.is_dir() else Path()) / "sweep"
    )
    rows = sweep(
        pipeline,
        load_dataset(run.data, train=run.reference == "train"),
        run,
        folder,
        model=pipeline.digest(),
        accelerator=accelerator,
        announce=tqdm.write,
    )
    if not accelerator.is_main_process:
        return
    replace_text(folder / "table.md", table(rows) + "\n")
    save_figure(draw(rows, pipeline.generator.spec.num_scales), folder / "sweep.png")
    print(table(rows))
    for warning in ranked(rows)[0].result.protocol["warnings"]:
        print(f"warning: {warning}")
    winner = best(rows)
    if winner is None:
        print(f"no gFID is finite; rows, table and plot: {folder}")
        return
    save_config(setting(winner), folder / "best.yaml")
    print(f"least gFID: {describe(winner.sampling)}")
    print(f"rows, table, plot and best.yaml: {folder}")


if __name__ == "__main__":
    run_program(main)

"""Compares quantizers: `python scripts/compare_quantizers.py CONFIG.yaml [key=value ...]`.

Trains every contender of the config with every seed, each in a process of its own, and writes
results.json, table.md and plots to the run folder. The same command again continues.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from lambda24.common.command_line import run_program
from lambda24.common.config import load_config
from lambda24.common.config_keys import PrintKeys
from lambda24.common.metrics.pairs import save_metrics
from lambda24.scripts.reports.quantizer_comparison import ComparisonResult, finished, run_contender
from lambda24.scripts.reports.quantizer_table import PLOTTED, dot_plot, table, values
from lambda24.scripts.reports.quantizer_task import ComparisonConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", help="YAML file of configs/comparison")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--keys", action=PrintKeys, config_class=ComparisonConfig)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train these contenders only")
    options = parser.parse_intermixed_args(argv)
    only, overrides = split_only(options.only or [])
    config = load_config(ComparisonConfig, options.config, [*options.overrides, *overrides])
    names = [contender.name for contender in config.contenders]
    wanted = only or names
    if unknown := set(wanted) - set(names):
        raise ValueError(f"--only: no contender {', '.join(sorted(unknown))} in {names}")
    results: list[ComparisonResult] = []
    # Seeds outermost: an interrupted comparison has every contender before a second seed of any.
    for seed in config.seeds:
        for contender in config.contenders:
            if contender.name not in wanted:
                if (done := finished(config, contender, seed)) is not None:
                    results.append(done)
                continue
            # A process each, so that peak memory is this contender's own.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
                results.append(pool.submit(run_contender, config, contender, seed).result())
            write_report(Path(config.run), results)
    write_report(Path(config.run), results)
    print(table(results))


def split_only(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What follows --only: names of contenders, and overrides, which have a "="."""
    names = [word for word in words if "=" not in word]
    return names, [word for word in words if "=" in word]


def write_report(folder: Path, results: Sequence[ComparisonResult]) -> None:
    """Writes results.json, table.md and one plot a measured field."""
    save_metrics({"results": [asdict(result) for result in results]}, folder / "results.json")
    (folder / "table.md").write_text(table(results), encoding="utf-8")
    for field in PLOTTED:
        if values(results, field):
            (folder / f"{field}.svg").write_text(dot_plot(results, field), encoding="utf-8")


if __name__ == "__main__":
    run_program(main)

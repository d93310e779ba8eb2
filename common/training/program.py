"""What training programs do with their command line: config, overrides, dry run, profile, `fit`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import psutil

from lambda24.common.config import load_config, to_yaml
from lambda24.common.config_keys import PrintKeys
from lambda24.common.data.batches import TrainingData
from lambda24.common.data.dataset import ImageDataset, load_dataset, load_training_data
from lambda24.common.data.settings import DataConfig
from lambda24.common.pretrained import numbers_at_most
from lambda24.common.training.estimate import FP32_BYTES, epochs_text
from lambda24.common.training.loop import LoopConfig, Task, fit


class TrainingConfig(Protocol):
    """The part of a run's config that does not depend on what is trained."""

    @property
    def run(self) -> str: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def loop(self) -> LoopConfig: ...
    @property
    def seed(self) -> int: ...


Config = TypeVar("Config", bound=TrainingConfig)


def training_program(
    config_class: type[Config],
    build_task: Callable[[Config, ImageDataset], Task],
    argv: Sequence[str] | None,
    *,
    plan: Callable[[Config], str],
    description: str | None,
    overrides_help: str,
    load_data: Callable[[Config], TrainingData] = lambda config: load_training_data(config.data),
) -> dict[str, float]:
    """`PROGRAM CONFIG.yaml [key=value ...] [--dry-run] [--profile STEPS]`.

    Args:
        build_task: the task of a config and of the held-out images.
        argv: arguments; None is the command line's.
        plan: what a dry run prints below the config.
        load_data: what to train on.

    Returns:
        The last evaluation's scores; nothing after a dry run.

    Raises:
        ValueError: a config, data or model that does not fit.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", help=overrides_help)
    parser.add_argument("--keys", action=PrintKeys, config_class=config_class)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--profile", type=int, metavar="STEPS", help="write RUN/profile.txt")
    options = parser.parse_intermixed_args(argv)
    config = load_config(config_class, options.config, options.overrides)
    if options.dry_run:
        print(to_yaml(config))
        print(plan(config))
        print(epochs_text(config.data, config.loop))
        return {}
    held_out = load_dataset(config.data, train=False)
    memory = psutil.virtual_memory().total
    with numbers_at_most(memory // FP32_BYTES, f"fit {memory / 2**30:.0f} GiB, this machine's"):
        task = build_task(config, held_out)
    return fit(
        task,
        load_data(config),
        loop=config.loop,
        run=Path(config.run),
        config=config,
        seed=config.seed,
        num_workers=config.data.num_workers,
        profile=options.profile,
    )

"""Both stages, samples and metrics in one command: `python scripts/quickstart.py`.

Trains a tokenizer and a generator on scikit-learn's handwritten digits (or `--data`), draws a grid
of each class, and measures reconstructions, samples and how much was learned by heart. The budget
is minutes, not steps: some timed steps of each stage decide how many fit, so a slower machine
trains less, not longer.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from lambda24.common.command_line import run_program
from lambda24.common.config import load_config
from lambda24.common.data.augmentation import AugmentConfig
from lambda24.common.data.dataset import ImageDataset, load_dataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.images import from_uint8, make_grid, save_image, to_uint8
from lambda24.common.metrics.pairs import save_metrics
from lambda24.common.metrics.reference import spread
from lambda24.common.training.loop import Task, fit
from lambda24.common.training.run_folder import BestWeights, RunFolder
from lambda24.generator.settings import GeneratorTrainingConfig
from lambda24.generator.task import GeneratorTask
from lambda24.sampling import Pipeline, SamplingConfig
from lambda24.sampling.model_card import read_training
from lambda24.sampling.preview import draw_classes
from lambda24.scripts.reports.quickstart_report import measure, report
from lambda24.tokenizer import ImageTokenizer
from lambda24.tokenizer.settings import TokenizerTrainingConfig
from lambda24.tokenizer.task import TokenizerTask

SAMPLING = SamplingConfig(guidance_scale=1.5)
FEW_IMAGES = 1_000
"""Training images below which a run warns that they are learned by heart."""
SMALL_SIDE = 48
"""Images of a median shorter side up to this are trained on at 32 pixels, others at 64."""
TIMED_STEPS, MIN_STEPS = 12, 10


Config = TypeVar("Config", TokenizerTrainingConfig, GeneratorTrainingConfig)


@dataclass(frozen=True)
class Recipe:
    """The two configs that suit some data, with its path in them."""

    tokenizer: TokenizerTrainingConfig
    generator: GeneratorTrainingConfig

    @classmethod
    def named(cls, name: str, path: str) -> Recipe:
        """The files of this name; other data than theirs has their size, crops and moves alone."""
        tokenizer = load_config(TokenizerTrainingConfig, f"tokenizer/{name}")
        generator = load_config(GeneratorTrainingConfig, f"generator/{name}")
        data = tokenizer.data
        if path != data.path:
            moves = AugmentConfig(rotation=5.0, shift=0.05, scale=0.1)
            data = DataConfig(path=path, image_size=data.image_size, augment=moves)
        return cls(replace(tokenizer, data=data), replace(generator, data=data))

    @classmethod
    def for_data(cls, path: str) -> Recipe:
        """30 tokens for digits; 103 for other images, which show more, at 32 or 64 pixels."""
        if path == "digits":
            return cls.named("digits_leech", path)
        images = load_dataset(DataConfig(path=path), train=True)
        sides = [min(images.original_size(k)) for k in spread(len(images), min(64, len(images)))]
        is_small = sorted(sides)[len(sides) // 2] <= SMALL_SIDE
        return cls.named("cifar10_leech" if is_small else "imagenet64_sample_leech", path)


@dataclass(frozen=True)
class Budget:
    """Minutes of the whole run and each stage's share; sampling and measuring get the rest."""

    minutes: float
    tokenizer_share: float = 0.2
    generator_share: float = 0.55

    def seconds(self, share: float) -> float:
        return 60 * self.minutes * share


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs everything and returns what metrics.json holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="digits", help="dataset name or folder of class folders")
    parser.add_argument("--minutes", type=float, default=7.0, help="budget of the whole run")
    parser.add_argument("--out", default="runs/quickstart", help="folder for everything written")
    options = parser.parse_args(argv)
    if options.minutes <= 0:
        parser.error(f"--minutes must be positive, got {options.minutes}")
    out = Path(options.out)
    if (out / "metrics.json").exists():
        parser.error(f"--out {out} holds a finished quickstart; choose another or remove it")
    return run(options.data, Budget(options.minutes), out)


def run(path: str, budget: Budget, out: Path) -> dict[str, Any]:
    """The whole path from images to metrics; see `main`."""
    start = time.perf_counter()
    recipe = Recipe.for_data(path)
    data = recipe.tokenizer.data
    train, held_out = load_dataset(data, train=True), load_dataset(data, train=False)
    size = data.image_size
    print(f"{path}: {len(train)} training and {len(held_out)} held-out images, {size} x {size}")
    if len(train) < FEW_IMAGES:
        print(
            f"warning: {len(train)} training images are few: below about {FEW_IMAGES} a generator "
            "learns them by heart; see the nats on held-out images below"
        )

    say("Stage 1: the tokenizer learns to write an image as Leech lattice codes")
    image_tokenizer = train_stage_1(recipe.tokenizer, train, held_out, budget, out)
    say("Stage 2: the generator learns to predict the codes, coarse to fine")
    nats = train_stage_2(recipe.generator, train, held_out, image_tokenizer, budget, out)

    say("Samples and metrics")
    pipeline = Pipeline.from_pretrained(out / "model")
    grid = draw_classes(pipeline.generator, pipeline.image_tokenizer, config=SAMPLING)
    save_image(grid, out / "samples.png")
    save_image(reconstruction_grid(image_tokenizer, held_out), out / "reconstructions.png")
    metrics = nats | measure(pipeline, train, held_out)
    metrics["seconds"] = time.perf_counter() - start
    save_metrics(metrics, out / "metrics.json")
    report(metrics, out, train.label_names)
    return metrics


def train_stage_1(
    config: TokenizerTrainingConfig,
    train: ImageDataset,
    held_out: ImageDataset,
    budget: Budget,
    out: Path,
) -> ImageTokenizer:
    """Trains and loads the tokenizer."""
    folder = out / "stage_1"
    config = replace(config, run=str(folder))
    seconds = budget.seconds(budget.tokenizer_share)
    fit_in(seconds, config, lambda config: TokenizerTask(config, held_out), train)
    return ImageTokenizer.from_pretrained(folder)


def train_stage_2(
    config: GeneratorTrainingConfig,
    train: ImageDataset,
    held_out: ImageDataset,
    image_tokenizer: ImageTokenizer,
    budget: Budget,
    out: Path,
) -> dict[str, Any]:
    """Trains the generator and writes a pipeline of its best weights into `out`.

    Returns:
        Nats per token of these weights on training and held-out images, and of a uniform draw.
    """
    folder = out / "stage_2"
    config = replace(
        config,
        run=str(folder),
        tokenizer=str(out / "stage_1"),
        model=replace(config.model, num_classes=train.num_classes),
    )
    seconds = budget.seconds(budget.generator_share)
    fit_in(
        seconds,
        config,
        lambda config: GeneratorTask(
            config,
            image_tokenizer,
            held_out,
            train,
            draw=lambda model: draw_classes(model, image_tokenizer, config=SAMPLING),
        ),
        train,
    )
    best = BestWeights(folder, "nll")
    assert best.found is not None
    step = best.found["step"]
    pipeline = Pipeline.from_pretrained(best.path(step))
    parts = (pipeline.image_tokenizer, pipeline.generator, SAMPLING, read_training(folder))
    Pipeline(*parts).save_pretrained(out / "model")
    rows = [row for row in RunFolder(folder).metrics() if "eval/nll" in row]
    chosen = next(row for row in rows if row["step"] == step)
    return {
        "held_out_nll": chosen["eval/nll"],
        "train_nll": chosen["eval/train_nll"],
        "uniform_nll": sum(map(math.log, image_tokenizer.spec.codebook_sizes)),
        "step": step,
        "last": {
            "held_out_nll": rows[-1]["eval/nll"],
            "train_nll": rows[-1]["eval/train_nll"],
            "step": rows[-1]["step"],
        },
    }


def fit_in(
    seconds: float, config: Config, make_task: Callable[[Config], Task], train: ImageDataset
) -> None:
    """Trains for about `seconds`: as many steps as fit, at most the config's own number.

    A machine that was busy with other work while steps were timed gets more of them afterwards. A
    run that is there already is finished as it was planned.
    """
    planned = RunFolder(config.run).config_file
    if planned.is_file():  # more steps would change the tokenizer that stage 2 was begun on
        steps = load_config(type(config), planned).loop.steps
        print(f"going on with {config.run}: {steps} steps", flush=True)
        run_steps(steps, config, make_task, train)
        return
    with tempfile.TemporaryDirectory() as folder:
        timing = replace(config.loop, steps=TIMED_STEPS, log_every=TIMED_STEPS)
        probe = replace(config, loop=timing, run=folder)
        print(f"timing {TIMED_STEPS} steps ...", flush=True)
        start = time.perf_counter()
        logging.disable(logging.INFO)
        try:
            fit(make_task(probe), train, loop=timing, run=folder, config=probe, seed=config.seed)
        finally:
            logging.disable(logging.NOTSET)
        spent = time.perf_counter() - start
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    speed = next(row["images_per_second"] for row in map(json.loads, lines) if "loss" in row)
    limit, done = config.loop.steps, 0
    is_new = not Path(config.run).exists()  # of a resumed run the time tells no speed
    steps = max(MIN_STEPS, min(limit, int((seconds - spent) * speed / config.loop.batch_size)))
    while done < steps:
        print(f"{speed:.0f} images/s: {steps} steps of {config.loop.batch_size} images", flush=True)
        start = time.perf_counter()
        run_steps(steps, config, make_task, train)
        seconds_of_run = time.perf_counter() - start
        spent += seconds_of_run
        speed = (steps - done) * config.loop.batch_size / seconds_of_run
        done = steps
        left = int((seconds - spent) * speed / config.loop.batch_size)
        if is_new and left > done // 2:  # busy while the steps were timed: the run goes on
            steps = min(limit, done + left)


def run_steps(
    steps: int, config: Config, make_task: Callable[[Config], Task], train: ImageDataset
) -> None:
    """Trains up to `steps`, from where the run is."""
    config = replace(config, loop=replace(config.loop, steps=steps))
    loop, run, seed = config.loop, config.run, config.seed
    fit(make_task(config), train, loop=loop, run=run, config=config, seed=seed)


def reconstruction_grid(image_tokenizer: ImageTokenizer, data: ImageDataset) -> Image.Image:
    """Rows of eight held-out images, each above its reconstructions."""
    images = data.images_uint8(spread(len(data), min(24, len(data))))
    reconstructions = to_uint8(image_tokenizer.decode(image_tokenizer.encode(from_uint8(images))))
    rows = zip(images.split(8), reconstructions.split(8), strict=True)
    return make_grid(torch.cat([half for row in rows for half in row]), columns=8)


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    run_program(main)

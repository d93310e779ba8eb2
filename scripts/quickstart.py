"""Both stages, samples and metrics in one command: `python scripts/quickstart.py`.

Trains a tokenizer and a generator on scikit-learn's handwritten digits (or `--data`), draws a grid
of each class, and measures reconstructions and samples. The budget is minutes, not steps: some
timed steps of each stage decide how many fit, so a slower machine trains less, not longer.
"""

from __future__ import annotations

import argparse
import json
import logging
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
from lambda24.common.data.dataset import DataConfig, ImageDataset, load_dataset
from lambda24.common.images import from_pil, from_uint8, make_grid, save_image, to_uint8
from lambda24.common.metrics.extractors import EfficientNetLite0Features
from lambda24.common.metrics.pairs import save_metrics
from lambda24.common.metrics.reference import spread
from lambda24.common.training.loop import Task, fit
from lambda24.common.training.tracking import RunFolder
from lambda24.generator.settings import GeneratorTrainingConfig
from lambda24.generator.task import GeneratorTask
from lambda24.sampling import Pipeline, SamplingConfig
from lambda24.sampling.evaluation.classifier import label_accuracy, train_classifier
from lambda24.sampling.evaluation.measure import MetricsConfig, evaluate_images
from lambda24.sampling.preview import draw_classes
from lambda24.tokenizer import ImageTokenizer
from lambda24.tokenizer.evaluation import TokenizerEvaluationConfig, evaluate_tokenizer
from lambda24.tokenizer.task import TokenizerTask, TokenizerTrainingConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SAMPLING = SamplingConfig(guidance_scale=1.5)
IMAGES_PER_CLASS = 50
MAX_REFERENCE = 5_000
TIMED_STEPS, MIN_STEPS = 12, 10
FIRST_SEED = 1_000
"""Seeds of the measured images; the grids that training draws use small seeds."""


Config = TypeVar("Config", TokenizerTrainingConfig, GeneratorTrainingConfig)


@dataclass(frozen=True)
class Budget:
    """Minutes of the whole run and each stage's share; sampling and measuring get the rest."""

    minutes: float
    tokenizer_share: float = 0.25
    generator_share: float = 0.5

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
    data = DataConfig(path=path)
    train, held_out = load_dataset(data, train=True), load_dataset(data, train=False)
    print(f"{path}: {len(train)} training and {len(held_out)} held-out images", flush=True)

    say("Stage 1: the tokenizer learns to write an image as Leech lattice codes")
    image_tokenizer = train_stage_1(data, train, held_out, budget, out)
    say("Stage 2: the generator learns to predict the codes, coarse to fine")
    train_stage_2(data, train, held_out, image_tokenizer, budget, out)

    say("Samples and metrics")
    pipeline = Pipeline.from_pretrained(out / "model")
    grid = draw_classes(pipeline.generator, pipeline.image_tokenizer, config=SAMPLING)
    save_image(grid, out / "samples.png")
    save_image(reconstruction_grid(image_tokenizer, held_out), out / "reconstructions.png")
    metrics = measure(pipeline, train, held_out)
    metrics["seconds"] = time.perf_counter() - start
    save_metrics(metrics, out / "metrics.json")
    report(metrics, out)
    return metrics


def train_stage_1(
    data: DataConfig, train: ImageDataset, held_out: ImageDataset, budget: Budget, out: Path
) -> ImageTokenizer:
    """Trains and loads the tokenizer."""
    folder = out / "stage_1"
    config = load_config(TokenizerTrainingConfig, CONFIGS / "tokenizer" / "digits_leech.yaml")
    config = replace(config, data=data, run=str(folder))
    seconds = budget.seconds(budget.tokenizer_share)
    fit_in(seconds, config, lambda config: TokenizerTask(config, held_out), train)
    return ImageTokenizer.from_pretrained(folder)


def train_stage_2(
    data: DataConfig,
    train: ImageDataset,
    held_out: ImageDataset,
    image_tokenizer: ImageTokenizer,
    budget: Budget,
    out: Path,
) -> None:
    """Trains the generator and writes the pipeline into `out`."""
    folder = out / "stage_2"
    config = load_config(GeneratorTrainingConfig, CONFIGS / "generator" / "digits_leech.yaml")
    config = replace(
        config,
        data=data,
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
    pipeline = Pipeline.from_pretrained(folder)
    Pipeline(pipeline.image_tokenizer, pipeline.generator, SAMPLING).save_pretrained(out / "model")


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


def measure(pipeline: Pipeline, train: ImageDataset, held_out: ImageDataset) -> dict[str, Any]:
    """Reconstruction and generation metrics, with EfficientNet-Lite0 as feature extractor."""
    extractor = EfficientNetLite0Features()
    reconstruction = evaluate_tokenizer(
        pipeline.image_tokenizer, held_out, TokenizerEvaluationConfig(extractor=extractor)
    )
    labels = torch.arange(train.num_classes).repeat_interleave(IMAGES_PER_CLASS)
    seeds = range(FIRST_SEED, FIRST_SEED + len(labels))
    images = pipeline(labels.tolist(), seeds, batch_size=100, progress=True)
    generated = from_pil(images)
    # Of every class: folders are sorted.
    chosen = spread(len(train), min(len(train), MAX_REFERENCE))
    real = train.images_uint8(chosen)
    subset = min(100, len(generated), len(real))
    quality = evaluate_images(
        generated, real, MetricsConfig(extractor=extractor, kid_subsets=20, kid_subset_size=subset)
    )
    classifier = train_classifier(real, train.labels[chosen])
    checked = spread(len(held_out), min(len(held_out), MAX_REFERENCE))
    checked_images = held_out.images_uint8(checked)
    return {
        "psnr": reconstruction.psnr,
        "rfid": reconstruction.rfid,
        "gfid": quality.gfid,
        "inception_score": quality.inception_score,
        "precision": quality.precision,
        "recall": quality.recall,
        "label_accuracy": label_accuracy(classifier, generated, labels),
        "classifier_accuracy": label_accuracy(classifier, checked_images, held_out.labels[checked]),
        "bits_per_image": reconstruction.bits_per_image,
        "protocol": {"reconstruction": reconstruction.protocol, "generation": quality.protocol},
    }


def report(metrics: dict[str, Any], out: Path) -> None:
    """Prints the table and where everything is."""
    rows = {
        "reconstruction PSNR (held-out)": f"{metrics['psnr']:.2f} dB",
        "reconstruction FID (rFID)": f"{metrics['rfid']:.2f}",
        "bits per image": f"{metrics['bits_per_image']:.0f}",
        "generation FID (gFID)": f"{metrics['gfid']:.2f}",
        "Inception Score": f"{metrics['inception_score']:.2f}",
        "precision / recall": f"{metrics['precision']:.3f} / {metrics['recall']:.3f}",
        "generated images recognised as their label": f"{metrics['label_accuracy']:.1%}",
        "the same classifier on held-out real images": f"{metrics['classifier_accuracy']:.1%}",
        "total time": f"{metrics['seconds']:.0f} s",
    }
    width = max(map(len, rows))
    print("\n" + "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))
    print("FID, IS, precision and recall use EfficientNet-Lite0 features: not comparable with")
    print("published Inception numbers. Everything is in:")
    for name in ("samples.png", "reconstructions.png", "metrics.json", "model"):
        print(f"  {out / name}")
    print(f"More: python scripts/sample.py {out / 'model'} --labels 0,1 --seeds 0:8 --out more.png")


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    run_program(main)

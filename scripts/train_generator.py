"""Trains a generator: `python scripts/train_generator.py CONFIG.yaml tokenizer=RUN [key=value]`.

Also under `accelerate launch`. The same command again resumes from the newest checkpoint. The run
folder is a pipeline folder: `scripts/sample.py RUN` and `Pipeline.from_pretrained(RUN)` read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lambda24.common.command_line import run_program
from lambda24.common.config import load_config
from lambda24.common.data.dataset import (
    ImageDataset,
    load_dataset,
    load_training_data,
    load_training_sample,
)
from lambda24.common.training.estimate import is_local
from lambda24.common.training.precision import resolve_precision
from lambda24.common.training.program import TrainingData, training_program
from lambda24.common.training.tracking import RunFolder
from lambda24.generator.plan import describe
from lambda24.generator.settings import GeneratorTrainingConfig, check_classes
from lambda24.generator.task import GeneratorTask
from lambda24.sampling.preview import draw_classes
from lambda24.tokenizer import ImageTokenizer
from lambda24.tokenizer.model import TokenizerConfig
from lambda24.tokenizer.task import TokenizerTrainingConfig
from lambda24.tokenizer.token_cache import TokenCache, tokenizer_fingerprint

STAGE_1 = Path(__file__).parents[1] / "configs" / "tokenizer"


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs stage 2 and returns the last evaluation's scores."""
    return training_program(
        GeneratorTrainingConfig,
        build_task,
        argv,
        plan=plan,
        description=__doc__,
        overrides_help="key=value; tokenizer=RUN names stage 1",
        load_data=load_data,
    )


def plan(config: GeneratorTrainingConfig) -> str:
    """What a dry run prints. Neither the tokenizer nor the data need to be there yet."""
    if is_local(config.data):
        check_classes(config, load_dataset(config.data, train=False))
    return describe(config, tokenizer_config(config.tokenizer))


def tokenizer_config(source: str) -> TokenizerConfig:
    """Of a trained tokenizer; of one yet to be trained, by the config under configs/ of that run.

    Raises:
        ValueError: neither exists.
    """
    if not Path(source).exists():
        for path in sorted(STAGE_1.glob("*.yaml")):
            stage_1 = load_config(TokenizerTrainingConfig, path)
            if stage_1.run == source:
                return stage_1.model
    return open_tokenizer(source).config


def open_tokenizer(source: str) -> ImageTokenizer:
    """The trained tokenizer of a config.

    Raises:
        ValueError: there is none, or it does not fit; names the key.
    """
    try:
        return ImageTokenizer.from_pretrained(source)
    except ValueError as error:
        raise ValueError(f"tokenizer: {error}") from error


def build_task(config: GeneratorTrainingConfig, eval_data: ImageDataset) -> GeneratorTask:
    """The task of a run, with sample grids."""
    image_tokenizer = open_tokenizer(config.tokenizer)
    check_same_tokenizer(config, image_tokenizer)
    return GeneratorTask(
        config,
        image_tokenizer,
        eval_data,
        load_training_sample(config.data, config.num_eval_images),
        draw=lambda model: draw_classes(model, image_tokenizer),
    )


def check_same_tokenizer(config: GeneratorTrainingConfig, image_tokenizer: ImageTokenizer) -> None:
    """Raises ValueError if the run has been trained on other tokens than these."""
    kept = Path(config.run) / ImageTokenizer.folder_name
    if not kept.is_dir() or not RunFolder(config.run).checkpoints.steps():
        return
    parts = (ImageTokenizer.from_pretrained(kept), image_tokenizer)
    before, now = map(tokenizer_fingerprint, parts)
    if before != now:
        raise ValueError(
            f"tokenizer: {config.tokenizer} has changed since {config.run} was started on it "
            f"({before[:8]} there, {now[:8]} now); its copy is {kept}: use another run folder"
        )


def load_data(config: GeneratorTrainingConfig) -> TrainingData:
    """Training images, or their tokens where the config names a folder of them."""
    if config.tokens is None:
        return load_training_data(config.data)
    image_tokenizer = open_tokenizer(config.tokenizer)
    precision = resolve_precision(config.loop.precision)
    return TokenCache.open(config.tokens, image_tokenizer, config.data, precision=precision)


if __name__ == "__main__":
    run_program(main)

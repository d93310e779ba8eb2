"""Trains a generator: `python scripts/train_generator.py CONFIG.yaml tokenizer=RUN [key=value]`.

Also under `accelerate launch`. The same command again resumes from the newest checkpoint. The run
folder is a pipeline folder: `scripts/sample.py RUN` and `Pipeline.from_pretrained(RUN)` read it.
"""

from __future__ import annotations

from collections.abc import Sequence

from lambda24.common.command_line import run_program
from lambda24.common.data.batches import TrainingData
from lambda24.common.data.dataset import (
    ImageDataset,
    load_dataset,
    load_training_data,
    load_training_sample,
)
from lambda24.common.training.estimate import is_local
from lambda24.common.training.launch import resolve_precision
from lambda24.common.training.program import training_program
from lambda24.generator.frozen_tokenizer import (
    check_same_tokenizer,
    open_tokenizer,
    tokenizer_config,
)
from lambda24.generator.plan import describe
from lambda24.generator.settings import GeneratorTrainingConfig, check_classes
from lambda24.generator.task import GeneratorTask
from lambda24.sampling.preview import draw_classes
from lambda24.tokenizer.token_cache import TokenCache


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


def load_data(config: GeneratorTrainingConfig) -> TrainingData:
    """Training images, or their tokens where the config names a folder of them."""
    if config.tokens is None:
        return load_training_data(config.data)
    image_tokenizer = open_tokenizer(config.tokenizer)
    precision = resolve_precision(config.loop.precision)
    return TokenCache.open(config.tokens, image_tokenizer, config.data, precision=precision)


if __name__ == "__main__":
    run_program(main)

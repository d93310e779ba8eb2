"""Trains a tokenizer: `python scripts/train_tokenizer.py CONFIG.yaml [key=value ...] [--dry-run]`.

Also under `accelerate launch`. The same command again resumes from the newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

from lambda24.common.command_line import run_program
from lambda24.common.training.program import training_program
from lambda24.tokenizer.plan import describe
from lambda24.tokenizer.settings import TokenizerTrainingConfig
from lambda24.tokenizer.task import TokenizerTask


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs stage 1 and returns the last evaluation's scores."""
    return training_program(
        TokenizerTrainingConfig,
        TokenizerTask,
        argv,
        plan=describe,
        description=__doc__,
        overrides_help="key=value, for example data.path=my_images",
    )


if __name__ == "__main__":
    run_program(main)

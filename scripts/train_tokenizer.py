"""Trains a tokenizer: `python scripts/train_tokenizer.py CONFIG.yaml [key=value ...] [--dry-run]`.

Also under `accelerate launch`. The same command again resumes from the newest checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.config import load_config, to_yaml
from common.data import load_dataset
from common.loop import fit
from tokenizer.training import TokenizerTask, TokenizerTrainingConfig


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs stage 1 and returns the last evaluation's scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", help="YAML file, see configs/tokenizer")
    parser.add_argument("overrides", nargs="*", help="key=value, for example data.path=my_images")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    options = parser.parse_intermixed_args(argv)
    config = load_config(TokenizerTrainingConfig, options.config, options.overrides)
    eval_data = load_dataset(config.data, train=False)
    task = TokenizerTask(config, eval_data)
    if options.dry_run:
        print(to_yaml(config))
        print(task.describe())
        return {}
    return fit(
        task,
        load_dataset(config.data, train=True),
        loop=config.loop,
        run=Path(config.run),
        config=config,
        seed=config.seed,
        num_workers=config.data.num_workers,
    )


if __name__ == "__main__":
    main()

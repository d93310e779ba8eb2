"""Trains a generator: `python scripts/train_generator.py CONFIG.yaml tokenizer=RUN [key=value]`.

Also under `accelerate launch`. The same command again resumes from the newest checkpoint. The run
folder is a pipeline folder: `scripts/sample.py RUN` and `Pipeline.from_pretrained(RUN)` read it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.config import load_config, to_yaml
from common.data import load_dataset, load_training_data
from common.loop import fit
from generator.training import GeneratorTask, GeneratorTrainingConfig
from sampling.preview import draw_classes
from tokenizer import ImageTokenizer


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs stage 2 and returns the last evaluation's scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", help="YAML file, see configs/generator")
    parser.add_argument("overrides", nargs="*", help="key=value; tokenizer=RUN names stage 1")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--profile", type=int, metavar="N", help="time N steps: RUN/profile.txt")
    options = parser.parse_intermixed_args(argv)
    config = load_config(GeneratorTrainingConfig, options.config, options.overrides)
    image_tokenizer = ImageTokenizer.from_pretrained(config.tokenizer)
    eval_data = load_dataset(config.data, train=False)
    task = GeneratorTask(
        config, image_tokenizer, eval_data, draw=lambda model: draw_classes(model, image_tokenizer)
    )
    if options.dry_run:
        print(to_yaml(config))
        print(task.describe())
        return {}
    return fit(
        task,
        load_training_data(config.data),
        loop=config.loop,
        run=Path(config.run),
        config=config,
        seed=config.seed,
        num_workers=config.data.num_workers,
        profile=options.profile,
    )


if __name__ == "__main__":
    main()

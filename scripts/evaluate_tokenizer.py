"""Measures a tokenizer's reconstructions: distances to the images, rates, code usage per scale.

[accelerate launch] python scripts/evaluate_tokenizer.py FOLDER_OR_HUB_ID
    configs/evaluation/cifar10_tokenizer.yaml [key=value ...], for example data.path=...
    evaluation.num_images=1000 out=result.json

PSNR is 10 log10(255² / MSE) of each image as uint8, rounded half up, then the mean over images; the
other definitions are in the result's protocol. Prints Markdown tables and writes the JSON result;
next to it, as ..._prefixes.png, a few images decoded from 1 scale, 2 scales, ..., all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lambda24.common.command_line import run_program
from lambda24.common.config import load_config
from lambda24.common.config_keys import PrintKeys
from lambda24.common.data.dataset import load_dataset
from lambda24.common.images import save_image
from lambda24.common.training.launch import patient_accelerator
from lambda24.tokenizer.evaluation import (
    TokenizerEvaluationRun,
    evaluate_tokenizer,
    prefix_pictures,
)
from lambda24.tokenizer.model import ImageTokenizer


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="tokenizer, pipeline or run folder, or hub id")
    parser.add_argument("config", help="YAML file of configs/evaluation")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--keys", action=PrintKeys, config_class=TokenizerEvaluationRun)
    arguments = parser.parse_intermixed_args(argv)
    config = load_config(TokenizerEvaluationRun, arguments.config, arguments.overrides)
    accelerator = patient_accelerator()
    image_tokenizer = ImageTokenizer.from_pretrained(arguments.model)
    image_tokenizer.to(config.device or accelerator.device)
    dataset = load_dataset(config.data, train=config.split == "train")
    result = evaluate_tokenizer(image_tokenizer, dataset, config.evaluation, accelerator)
    if not accelerator.is_main_process:
        return
    folder = Path(arguments.model) if Path(arguments.model).is_dir() else Path()
    out = Path(config.out) if config.out is not None else folder / "reconstruction.json"
    result.save(out)
    print(result.markdown(arguments.model))
    print(f"written to {out}")
    if config.num_pictures:
        picture = out.with_name(f"{out.stem}_prefixes.png")
        save_image(prefix_pictures(image_tokenizer, dataset, config.num_pictures), picture)
        print(f"prefixes in {picture}")


if __name__ == "__main__":
    run_program(main)

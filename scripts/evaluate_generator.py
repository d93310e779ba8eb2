"""Samples from a pipeline and measures gFID, IS, precision, recall and KID against a data set.

[accelerate launch] python scripts/evaluate_generator.py PIPELINE configs/evaluation/cifar10.yaml
    [key=value ...], e.g. data.path=... evaluation.sampling.guidance_scale=1.5 out=result.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lambda24.common.command_line import run_program
from lambda24.common.config import load_config
from lambda24.common.data.dataset import load_dataset
from lambda24.common.training.launch import patient_accelerator
from lambda24.sampling.evaluation.protocol import EvaluationRun, evaluate_generator
from lambda24.sampling.pipeline import Pipeline


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pipeline", help="folder with tokenizer/ and generator/, or hub id")
    parser.add_argument("config", help="YAML file of configs/evaluation")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    config = load_config(EvaluationRun, arguments.config, arguments.overrides)
    accelerator = patient_accelerator()
    pipeline = Pipeline.from_pretrained(arguments.pipeline).to(accelerator.device)
    dataset = load_dataset(config.data, train=config.reference == "train")
    result = evaluate_generator(
        pipeline, dataset, config.evaluation, part=config.reference, accelerator=accelerator
    )
    if not accelerator.is_main_process:
        return
    folder = Path(arguments.pipeline) if Path(arguments.pipeline).is_dir() else Path()
    out = Path(config.out) if config.out is not None else folder / "evaluation.json"
    result.save(out)
    print(result.markdown(arguments.pipeline))
    for warning in result.protocol["warnings"]:
        print(f"warning: {warning}")
    print(f"written to {out}")


if __name__ == "__main__":
    run_program(main)

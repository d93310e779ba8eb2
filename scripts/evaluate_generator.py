"""Samples from a pipeline and measures gFID, IS, precision, recall and KID against a data set.

[accelerate launch] python scripts/evaluate_generator.py PIPELINE configs/evaluation/cifar10.yaml
    [key=value ...], e.g. data.path=... evaluation.sampling.guidance_scale=1.5 out=result.json

A guided evaluation has a second row without guidance (without_guidance=false: not).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lambda24.common.command_line import run_program
from lambda24.common.config import load_config
from lambda24.common.config_keys import PrintKeys
from lambda24.common.data.dataset import load_dataset
from lambda24.common.metrics.pairs import save_metrics
from lambda24.common.training.launch import patient_accelerator
from lambda24.sampling.evaluation.protocol import EvaluationRun, GeneratorEvaluator
from lambda24.sampling.evaluation.result import markdown
from lambda24.sampling.pipeline import Pipeline


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pipeline", help="folder with tokenizer/ and generator/, or hub id")
    parser.add_argument("config", help="YAML file of configs/evaluation")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--keys", action=PrintKeys, config_class=EvaluationRun)
    arguments = parser.parse_intermixed_args(argv)
    config = load_config(EvaluationRun, arguments.config, arguments.overrides)
    accelerator = patient_accelerator()
    pipeline = Pipeline.from_pretrained(arguments.pipeline).to(accelerator.device)
    dataset = load_dataset(config.data, train=config.reference == "train")
    evaluation = config.evaluation
    evaluator = GeneratorEvaluator(
        pipeline, dataset, evaluation, part=config.reference, accelerator=accelerator
    )
    result = evaluator.measure(evaluation.sampling)
    plain = evaluator.measure_unguided(evaluation.sampling) if config.without_guidance else None
    if not accelerator.is_main_process:
        return
    folder = Path(arguments.pipeline) if Path(arguments.pipeline).is_dir() else Path()
    out = Path(config.out) if config.out is not None else folder / "evaluation.json"
    found, rows = result.to_dict(), {arguments.pipeline: result}
    if plain is not None:
        found["without_guidance"] = plain.to_dict()
        rows["the same without guidance"] = plain
    save_metrics(found, out)
    print(markdown(rows))
    for warning in result.protocol["warnings"]:
        print(f"warning: {warning}")
    print(f"written to {out}")


if __name__ == "__main__":
    run_program(main)

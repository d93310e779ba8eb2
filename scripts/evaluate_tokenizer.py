"""Measures a tokenizer's reconstructions.

python scripts/evaluate_tokenizer.py FOLDER_OR_HUB_ID configs/evaluation/cifar10_tokenizer.yaml
    [key=value ...], for example data.path=... evaluation.num_images=1000 out=result.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from common.config import load_config
from common.data import load_dataset
from tokenizer.evaluation import TokenizerEvaluationRun, evaluate_tokenizer
from tokenizer.model import ImageTokenizer


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", help="tokenizer, pipeline or run folder, or hub id")
    parser.add_argument("config", help="YAML file of configs/evaluation")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    config = load_config(TokenizerEvaluationRun, arguments.config, arguments.overrides)
    image_tokenizer = ImageTokenizer.from_pretrained(arguments.model).to(config.device)
    dataset = load_dataset(config.data, train=config.split == "train")
    result = evaluate_tokenizer(image_tokenizer, dataset, config.evaluation)
    folder = Path(arguments.model) if Path(arguments.model).is_dir() else Path()
    out = Path(config.out) if config.out is not None else folder / "reconstruction.json"
    result.save(out)
    print(json.dumps({k: v for k, v in result.to_dict().items() if k != "protocol"}, indent=2))
    print(f"written to {out}")


if __name__ == "__main__":
    main()

"""Measures images of any origin by the protocol of evaluate_generator.py.

python scripts/evaluate_images.py IMAGES configs/evaluation/cifar10.yaml [key=value ...]

IMAGES is a folder, an npz file (arr_0, uint8 (N, H, W, 3)), or "train" / "eval" for real images of
the config's own data: the row to read ours beside. The part that is the reference is split in two
halves, images 0, 2, 4, ... against 1, 3, 5, ...
Of a folder written by sample.py and an npz file with labels in arr_1, unequal class counts are
refused unless evaluation.allow_unequal_classes=true; where labels are unknown the result says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lambda24.common.command_line import run_program
from lambda24.common.config import load_config, to_dict
from lambda24.common.config_keys import PrintKeys
from lambda24.common.data.dataset import ImageDataset, load_dataset
from lambda24.common.metrics.extractors import build_extractor
from lambda24.common.metrics.reference import (
    ImageSource,
    SubsetImages,
    extract_features,
    image_batches,
    unreadable_images,
)
from lambda24.sampling.evaluation.measure import compare_features
from lambda24.sampling.evaluation.protocol import EvaluationRun, class_counts
from lambda24.sampling.evaluation.result import markdown
from lambda24.sampling.image_files import open_images, read_labels

PARTS = ("train", "eval")
UNKNOWN_CLASSES = "the classes of the images are not known: whether each has as many is not checked"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("images", help='folder, npz file, "train" or "eval"')
    parser.add_argument("config", help="YAML file of configs/evaluation")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--keys", action=PrintKeys, config_class=EvaluationRun)
    arguments = parser.parse_intermixed_args(argv)
    config = load_config(EvaluationRun, arguments.config, arguments.overrides)
    dataset = load_dataset(config.data, train=config.reference == "train")
    images, labels, reference = open_both(arguments.images, config, dataset)
    metrics = config.evaluation.metrics
    metrics.check(len(images), len(reference))
    protocol: dict[str, Any] = {
        "images": arguments.images,
        "images_per_class": None,  # not known
        "reference": {
            "data": to_dict(config.data),
            "part": config.reference,
            "fingerprint": dataset.fingerprint,
        },
    }
    if labels is not None:
        if len(labels) != len(images):
            raise ValueError(f"{arguments.images} has {len(images)} images, {len(labels)} labels")
        is_real = arguments.images in PARTS  # and has the counts that the data has
        unequal = config.evaluation.allow_unequal_classes or is_real
        counted = replace(config.evaluation, allow_unequal_classes=unequal)
        protocol |= class_counts(labels, dataset.num_classes, counted)
    extractor = build_extractor(metrics.extractor)
    generated = extract_features(image_batches(images, metrics.batch_size), extractor)
    result = compare_features(generated, reference, extractor, metrics, protocol)
    left_out = len(unreadable_images(dataset))
    result.protocol["reference"]["unreadable_left_out"] = left_out
    if left_out:
        result.protocol["warnings"].append(
            f"{left_out} images of the reference are unreadable and left out"
        )
    if labels is None:
        result.protocol["warnings"].append(UNKNOWN_CLASSES)
    print(markdown({Path(arguments.images).name: result}))
    for warning in result.protocol["warnings"]:
        print(f"warning: {warning}")
    if config.out is not None:
        result.save(config.out)
        print(f"written to {config.out}")


def open_both(
    name: str, config: EvaluationRun, reference: ImageDataset
) -> tuple[ImageSource, Tensor | None, ImageSource]:
    """The images to measure, their labels `(N,)` where known, and their reference."""
    if name == config.reference:
        even, odd = (range(start, len(reference), 2) for start in (0, 1))
        return SubsetImages(reference, even), reference.labels[::2], SubsetImages(reference, odd)
    if name in PARTS:
        real = load_dataset(config.data, train=name == "train")
        return real, real.labels, reference
    return open_images(name, config.data.image_size), read_labels(name), reference


if __name__ == "__main__":
    run_program(main)

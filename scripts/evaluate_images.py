"""Measures images of any origin by the protocol of evaluate_generator.py.

python scripts/evaluate_images.py IMAGES configs/evaluation/cifar10.yaml [key=value ...]

IMAGES is a folder, an npz file (arr_0, uint8 (N, H, W, 3); with labels in arr_1, unequal class
counts are refused unless evaluation.allow_unequal_classes=true), or "train" / "eval" for real
images of the config's own data: the row to read ours beside. The part that is the reference is
split in two halves, images 0, 2, 4, ... against 1, 3, 5, ...
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config import load_config, to_dict
from common.data import ImageDataset, load_dataset
from common.extractors import build_extractor
from common.reference import ImageSource, SubsetImages, extract_features, image_batches
from sampling.comparison import compare_features
from sampling.evaluation import EvaluationRun, class_counts
from sampling.image_files import open_images, read_labels


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("images", help='folder, npz file, "train" or "eval"')
    parser.add_argument("config", help="YAML file of configs/evaluation")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    config = load_config(EvaluationRun, arguments.config, arguments.overrides)
    dataset = load_dataset(config.data, train=config.reference == "train")
    images, reference = open_both(arguments.images, config, dataset)
    metrics = config.evaluation.metrics
    protocol: dict[str, Any] = {
        "images": arguments.images,
        "images_per_class": None,  # not known
        "reference": {"data": to_dict(config.data), "part": config.reference},
    }
    if (labels := read_labels(arguments.images)) is not None:
        if len(labels) != len(images):
            raise ValueError(f"{arguments.images} has {len(images)} images, {len(labels)} labels")
        protocol |= class_counts(labels, dataset.num_classes, config.evaluation)
    extractor = build_extractor(metrics.extractor)
    generated = extract_features(image_batches(images, metrics.batch_size), extractor)
    result = compare_features(generated, reference, extractor, metrics, protocol)
    print(result.markdown(Path(arguments.images).name))
    for warning in result.protocol["warnings"]:
        print(f"warning: {warning}")
    if config.out is not None:
        result.save(config.out)
        print(f"written to {config.out}")


def open_both(
    name: str, config: EvaluationRun, reference: ImageDataset
) -> tuple[ImageSource, ImageSource]:
    """The images to measure and their reference."""
    if name == config.reference:
        halves = [range(start, len(reference), 2) for start in (0, 1)]
        return SubsetImages(reference, halves[0]), SubsetImages(reference, halves[1])
    if name in ("train", "eval"):
        return load_dataset(config.data, train=name == "train"), reference
    return open_images(name, config.data.image_size), reference


if __name__ == "__main__":
    main()

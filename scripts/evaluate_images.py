"""Measures images of any origin by the protocol of evaluate_generator.py, or against each other.

python scripts/evaluate_images.py IMAGES configs/evaluation/cifar10.yaml [key=value ...]

IMAGES is a folder, an npz file (arr_0, uint8 (N, H, W, 3)), or "train" / "eval" for real images of
the config's own data: the row to read ours beside. The part that is the reference is split in two
halves, images 0, 2, 4, ... against 1, 3, 5, ...
Of a folder written by sample.py and an npz file with labels in arr_1, unequal class counts are
refused unless evaluation.allow_unequal_classes=true; where labels are unknown the result says so.

Two folders or npz files, flat or in class folders, all their images, without any config:
    python scripts/evaluate_images.py generated real [neighbors=3 out=result.json]
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
from lambda24.sampling.evaluation.measure import MetricsConfig, compare_features
from lambda24.sampling.evaluation.protocol import EvaluationRun, class_counts
from lambda24.sampling.evaluation.result import EvaluationResult, markdown
from lambda24.sampling.image_files import image_size, open_images, read_labels

PARTS = ("train", "eval")
UNKNOWN_CLASSES = "the classes of the images are not known: whether each has as many is not checked"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("images", help='folder, npz file, "train" or "eval"')
    parser.add_argument("config", help="YAML file of configs/evaluation; or a folder or npz file")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--keys", action=PrintKeys, config_class=EvaluationRun)
    arguments = parser.parse_intermixed_args(argv)
    if is_set_of_images(arguments.config):
        compare_sets(arguments.images, arguments.config, arguments.overrides)
        return
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
    save(result, config.out or result_name(arguments.images, config.reference))


def is_set_of_images(path: str) -> bool:
    """Whether a path is a folder or an npz file, and no config."""
    return Path(path).is_dir() or Path(path).suffix == ".npz"


def compare_sets(name: str, reference_name: str, overrides: Sequence[str]) -> None:
    """All images of a folder or npz file against all of another, flat or in class folders.

    Args:
        overrides: keys of `MetricsConfig`; the extractor is EfficientNet-Lite0 and subsets of KID
            are as large as the smaller set unless they say otherwise. `out=FILE` is the result's.

    Raises:
        ValueError: images of different sizes, or too few for the metrics.
    """
    outs = [text.removeprefix("out=") for text in overrides if text.startswith("out=")]
    others = [text for text in overrides if not text.startswith("out=")]
    size = image_size(reference_name)
    images, reference = open_images(name, size), open_images(reference_name, size)
    smaller = min(len(images), len(reference))
    subset = min(MetricsConfig().kid_subset_size, smaller)
    fitted = ["extractor.kind=efficientnet_lite0", f"kid_subset_size={subset}"]
    metrics = load_config(MetricsConfig, None, [*fitted, *others])
    metrics.check(len(images), len(reference))
    print(
        f"{name}: {len(images)} images; {reference_name}: {len(reference)}; "
        f"{size} x {size} pixels, subsets of KID {metrics.kid_subset_size}"
    )
    extractor = build_extractor(metrics.extractor)
    generated = extract_features(image_batches(images, metrics.batch_size), extractor)
    protocol = {"images": name, "images_per_class": None, "reference": {"images": reference_name}}
    result = compare_features(generated, reference, extractor, metrics, protocol)
    print(markdown({Path(name).name: result}))
    for warning in result.protocol["warnings"]:
        print(f"warning: {warning}")
    save(result, outs[-1] if outs else result_name(name, reference_name))


def save(result: EvaluationResult, path: str) -> None:
    result.save(path)
    print(f"written to {path}")


def result_name(name: str, reference_name: str) -> str:
    """Where a result goes that names no file: into the working folder."""
    return f"{Path(name).stem}_against_{Path(reference_name).stem}.json"


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

"""The evaluation protocol of generators: which images are sampled, and what they are compared with.

Image i of a run has label i mod num_classes and seed first_seed + i, whatever the batch size or the
number of processes. Images go straight from the decoder into features; none is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from lambda24.common.config import config_class, to_dict
from lambda24.common.data.dataset import ImageDataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.images import from_pil
from lambda24.common.metrics.extractors import FeatureExtractor, ImageFeatures, build_extractor
from lambda24.common.metrics.reference import FeatureSet, collect_features, unreadable_images
from lambda24.common.processes import gather, main_first, share
from lambda24.sampling.evaluation.measure import (
    MetricsConfig,
    compare_features,
    evaluate_images,
    measure_reference,
)
from lambda24.sampling.evaluation.result import EvaluationResult
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.seeds import NUM_SEEDS
from lambda24.sampling.settings import SamplingConfig

__all__ = [
    "EvaluationConfig",
    "EvaluationResult",
    "EvaluationRun",
    "GeneratorEvaluator",
    "MetricsConfig",
    "class_counts",
    "evaluate_generator",
    "evaluate_images",
    "sample_features",
]


@config_class
class EvaluationConfig:
    """What is sampled, and how it is compared.

    Args:
        num_images: generated images, the same number of each class.
        first_seed: seed of the first image; the others follow.
        batch_size: images sampled at once.
        allow_unequal_classes: accept a number of images that the classes do not divide.
        sampling: None takes the pipeline's own settings.
    """

    num_images: Annotated[int, Field(ge=2)]
    first_seed: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=1)] = 64
    allow_unequal_classes: bool = False
    sampling: SamplingConfig | None = None
    metrics: MetricsConfig = MetricsConfig()


@config_class
class EvaluationRun:
    """One file of `scripts/evaluate_generator.py`.

    Args:
        reference: which part of the data the generated images are compared with.
        without_guidance: of a guided evaluation, measure the same labels and seeds without guidance
            too.
        out: result file; None writes `evaluation.json` next to the model.
    """

    data: DataConfig
    evaluation: EvaluationConfig
    reference: Literal["train", "eval"] = "train"
    without_guidance: bool = True
    out: str | None = None


def evaluate_generator(
    pipeline: Pipeline,
    dataset: ImageDataset,
    config: EvaluationConfig,
    *,
    part: str = "train",
    accelerator: Accelerator | None = None,
) -> EvaluationResult:
    """Samples images and compares them with a data set.

    Args:
        part: name of the data set's split, for the protocol.
        accelerator: shares the sampling among its processes; all get the result.

    Raises:
        ValueError: before anything is sampled: unequal class counts, other classes or another image
            size than the data's, seeds out of range, fewer images than the metrics need.
    """
    evaluator = GeneratorEvaluator(pipeline, dataset, config, part=part, accelerator=accelerator)
    return evaluator.measure(config.sampling)


class GeneratorEvaluator:
    """`evaluate_generator` for several settings: builds the extractor and the reference once.

    Arguments and errors are those of `evaluate_generator`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        dataset: ImageDataset,
        config: EvaluationConfig,
        *,
        part: str = "train",
        accelerator: Accelerator | None = None,
    ) -> None:
        _check(pipeline, dataset, config)
        self.pipeline, self.dataset, self.config = pipeline, dataset, config
        self.part, self.accelerator = part, accelerator
        self._model = pipeline.digest()
        self.extractor = build_extractor(config.metrics.extractor, pipeline.device)
        self._reference: FeatureSet | None = None

    def measure(self, sampling: SamplingConfig | None) -> EvaluationResult:
        """Samples the config's images with these settings; None takes the pipeline's own."""
        config = replace(self.config, sampling=sampling)
        generated = sample_features(self.pipeline, self.extractor, config, self.accelerator)
        protocol = self._protocol(sampling or self.pipeline.sampling)
        with main_first(self.accelerator):
            if self._reference is None:
                self._reference = measure_reference(self.dataset, self.extractor, config.metrics)
            return compare_features(
                generated, self._reference, self.extractor, config.metrics, protocol
            )

    def measure_unguided(self, sampling: SamplingConfig | None) -> EvaluationResult | None:
        """`measure` without the guidance of these settings; None if they have none."""
        sampling = sampling or self.pipeline.sampling
        scales = sampling.resolve(self.pipeline.generator.spec)
        if all(scale.guidance_scale == 1 for scale in scales):
            return None
        return self.measure(replace(sampling, guidance_scale=1.0))

    def _protocol(self, sampling: SamplingConfig) -> dict[str, Any]:
        config, num_classes = self.config, self.pipeline.generator.num_classes
        labels = image_labels(torch.arange(config.num_images), num_classes)
        counts = torch.bincount(labels, minlength=num_classes)
        return {
            "model": self._model,
            "images_per_class": [int(counts.min()), int(counts.max())],
            "num_classes": num_classes,
            "labels": "image i has label i mod num_classes",
            "seeds": f"image i has seed {config.first_seed} + i",
            "sampling": to_dict(sampling),
            "batch_size": config.batch_size,  # it and the dtype fix how the images are rounded
            "dtype": str(self.pipeline.dtype),
            "reference": {
                "data": to_dict(self.dataset.config),
                "part": self.part,
                "fingerprint": self.dataset.fingerprint,
                "unreadable_left_out": len(unreadable_images(self.dataset)),
            },
        }


def image_labels(positions: Tensor, num_classes: int) -> Tensor:
    """Labels of images by their position, `(N,)` int64."""
    return positions % num_classes


def _check(pipeline: Pipeline, dataset: ImageDataset, config: EvaluationConfig) -> None:
    num_classes = pipeline.generator.num_classes
    if num_classes != dataset.num_classes:
        raise ValueError(
            f"the generator has {num_classes} classes, the reference data {dataset.num_classes}"
        )
    size, data_size = pipeline.image_tokenizer.config.image_size, dataset.config.image_size
    if size != data_size:
        raise ValueError(f"the model makes images of {size} pixels, data.image_size is {data_size}")
    if config.num_images % num_classes and not config.allow_unequal_classes:
        raise ValueError(
            f"num_images {config.num_images} is not a multiple of {num_classes} classes; choose "
            f"{max(1, config.num_images // num_classes) * num_classes} or set "
            "allow_unequal_classes"
        )
    if config.first_seed + config.num_images > NUM_SEEDS:
        raise ValueError(
            f"first_seed {config.first_seed} and num_images {config.num_images} need seeds beyond "
            f"the last one, {NUM_SEEDS - 1}"
        )
    config.metrics.check(config.num_images, len(dataset))


def class_counts(labels: Tensor, num_classes: int, config: EvaluationConfig) -> dict[str, Any]:
    """What the protocol says of the labels `(N,)` of images from elsewhere.

    Raises:
        ValueError: labels out of range, or unequally many images of the classes, unless allowed.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels must lie in [0, {num_classes - 1}], the classes of the reference data, "
            f"got {int(labels.min())} to {int(labels.max())}"
        )
    counts = torch.bincount(labels, minlength=num_classes)
    least, most = int(counts.min()), int(counts.max())
    if least < most and not config.allow_unequal_classes:
        raise ValueError(
            f"the classes have {least} to {most} images; give equally many of each or set "
            "evaluation.allow_unequal_classes=true"
        )
    return {"images_per_class": [least, most], "num_classes": num_classes}


@torch.no_grad()
def sample_features(
    pipeline: Pipeline,
    extractor: FeatureExtractor,
    config: EvaluationConfig,
    accelerator: Accelerator | None = None,
) -> FeatureSet:
    """Features of the run's images, in order; every process gets all of them."""
    mine = share(config.num_images, accelerator)
    is_quiet = accelerator is not None and not accelerator.is_main_process
    parts = []
    num_classes = pipeline.generator.num_classes
    with tqdm(total=len(mine), unit="image", desc="sampling", disable=is_quiet) as bar:
        for positions in mine.split(config.batch_size):
            images = pipeline(
                labels=image_labels(positions, num_classes).tolist(),
                seeds=(config.first_seed + positions).tolist(),
                batch_size=config.batch_size,
                config=config.sampling,
            )
            parts.append(extractor(from_pil(images)))
            bar.update(len(images))
    return _gather(parts, accelerator, config.num_images)


def _gather(
    parts: Sequence[ImageFeatures], accelerator: Accelerator | None, count: int
) -> FeatureSet:
    """All processes' features in the order of the images."""

    def ordered(values: list[Tensor | None]) -> Tensor | None:
        rows = [value for value in values if value is not None]
        return gather(torch.cat(rows), count, accelerator) if rows else None

    pooled = ordered([part.pooled for part in parts])
    assert pooled is not None
    logits, spatial = ordered([p.logits for p in parts]), ordered([p.spatial for p in parts])
    return collect_features([ImageFeatures(pooled, logits, spatial)])

"""Distances between a set of generated images and a set of real ones, with their protocol.

FID, sFID, KID, Inception Score, precision, recall, density and coverage, clipped or not, on one
extractor's features (on DINOv2's, gFID is FD-DINOv2). A result without extractor, sample counts and
reference means nothing, so they travel with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from lambda24.common.config import config_class, to_dict
from lambda24.common.metrics.distances import (
    KernelDistance,
    ManifoldMetrics,
    frechet_distance,
    inception_score,
    kernel_distance,
    manifold_metrics,
)
from lambda24.common.metrics.extractors import (
    ExtractorConfig,
    FeatureExtractor,
    InceptionFeatures,
    build_extractor,
)
from lambda24.common.metrics.intervals import (
    binomial_error,
    deal_groups,
    frechet_without,
    half_width,
    inception_without,
    jackknife_error,
    kernel_without,
    manifold_without,
)
from lambda24.common.metrics.pairs import library_versions
from lambda24.common.metrics.reference import (
    FeatureSet,
    ImageSource,
    TensorImages,
    default_cache,
    extract_features,
    reference_features,
)
from lambda24.sampling.evaluation.result import EvaluationResult


@config_class
class MetricsConfig:
    """How two sets of images are compared.

    Args:
        extractor: Inception for numbers to publish; efficientnet_lite0 works offline.
        batch_size: images whose features are extracted at once.
        neighbors: k of precision and recall.
        density_neighbors: k of density and coverage, clipped or not.
        kid_subsets: number of random subsets of KID.
        kid_subset_size: images of a subset.
        max_reference: reference images that enter KID, precision, recall, density and coverage,
            spread evenly; FID uses all of them.
        num_resamples: groups of the jackknife that gives every metric a standard error and a 95%
            interval; 0 for binomial ones of precision, recall and coverage only. 50 groups of
            10,000 images with 1,280 features take about 50 s on one CPU core.
    """

    extractor: ExtractorConfig = InceptionFeatures()
    batch_size: Annotated[int, Field(ge=1)] = 64
    neighbors: Annotated[int, Field(ge=1)] = 3
    density_neighbors: Annotated[int, Field(ge=1)] = 5
    kid_subsets: Annotated[int, Field(ge=1)] = 100
    kid_subset_size: Annotated[int, Field(ge=2)] = 1000
    max_reference: Annotated[int, Field(ge=2)] = 10_000
    num_resamples: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if self.num_resamples == 1:
            raise ValueError("num_resamples must be 0 or at least 2, got 1")

    def check(self, num_images: int, num_reference: int) -> None:
        """Refuses sets that are too small for these settings, before anything is made of them.

        Args:
            num_images: generated images.
            num_reference: images of the whole reference.

        Raises:
            ValueError: names the setting and the number that do not fit.
        """
        real = f"max_reference {self.max_reference}"
        if num_reference < self.max_reference:
            real = f"the reference's number of images, {num_reference}"
        sets = {
            f"num_images {num_images}": num_images,
            real: min(self.max_reference, num_reference),
        }
        for name, count in sets.items():
            if self.kid_subset_size > count:
                raise ValueError(
                    f"evaluation.metrics.kid_subset_size {self.kid_subset_size} exceeds {name}"
                )
        if self.num_resamples > num_images // 2:
            raise ValueError(
                f"evaluation.metrics.num_resamples {self.num_resamples} leaves less than 2 images "
                f"of num_images {num_images} to a group"
            )
        if self.num_resamples:
            without = f"num_images {num_images} without one of num_resamples {self.num_resamples}"
            sets[without] = num_images - -(-num_images // self.num_resamples)
        for field in ("neighbors", "density_neighbors"):
            for name, count in sets.items():
                if (value := getattr(self, field)) >= count:
                    raise ValueError(f"evaluation.metrics.{field} {value} is not less than {name}")


def evaluate_images(
    generated: Tensor, reference: Tensor, config: MetricsConfig
) -> EvaluationResult:
    """Compares uint8 images `(N, 3, H, W)` with real ones `(M, 3, H, W)`.

    Raises:
        ValueError: other shapes or types, or fewer images than the metrics need.
    """
    if generated.shape[1:] != reference.shape[1:]:
        raise ValueError(
            "generated and reference images must have one shape, "
            f"got {tuple(generated.shape[1:])} and {tuple(reference.shape[1:])}"
        )
    extractor = build_extractor(config.extractor)
    features = extract_features(generated.split(config.batch_size), extractor)
    return compare_features(features, TensorImages(reference), extractor, config)


def measure_reference(
    source: ImageSource, extractor: FeatureExtractor, config: MetricsConfig
) -> FeatureSet:
    """Features of real images, cached by content."""
    return reference_features(
        source,
        extractor,
        batch_size=config.batch_size,
        max_kept=config.max_reference,
        cache=default_cache(),
    )


def compare_features(
    generated: FeatureSet,
    reference: ImageSource | FeatureSet,
    extractor: FeatureExtractor,
    config: MetricsConfig,
    protocol: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """Compares features with those of a reference.

    Args:
        reference: images, or what `measure_reference` found in them.
        protocol: what else is known about the generated images and the reference.
    """
    started = time.monotonic()
    real = reference
    if not isinstance(real, FeatureSet):
        real = measure_reference(real, extractor, config)
    kernel = kernel_distance(
        generated.pooled,
        real.pooled,
        num_subsets=config.kid_subsets,
        subset_size=config.kid_subset_size,
    )
    manifold = manifold_metrics(
        generated.pooled,
        real.pooled,
        neighbors=config.neighbors,
        density_neighbors=config.density_neighbors,
    )
    sfid = None
    if generated.spatial is not None and real.spatial is not None:
        sfid = frechet_distance(generated.spatial, real.spatial)
    values = {
        "gfid": frechet_distance(generated.stats, real.stats),
        "precision": manifold.precision,
        "recall": manifold.recall,
        "density": manifold.density,
        "coverage": manifold.coverage,
        "clipped_density": manifold.clipped_density,
        "clipped_coverage": manifold.clipped_coverage,
        "kid_mean": kernel.mean,
    }
    if generated.logits is not None:
        values["inception_score"] = inception_score(generated.logits)
    errors = _errors(generated, real, manifold, kernel, config)
    intervals = {}
    for name, error in errors.items():
        width = half_width(error, config.num_resamples or None)
        intervals[name] = (values[name] - width, values[name] + width)
    extra = dict(protocol or {})
    num_images, num_real = len(generated.pooled), len(real.pooled)
    return EvaluationResult(
        gfid=values["gfid"],
        sfid=sfid,
        inception_score=values.get("inception_score"),
        precision=manifold.precision,
        recall=manifold.recall,
        density=manifold.density,
        coverage=manifold.coverage,
        clipped_density=manifold.clipped_density,
        clipped_coverage=manifold.clipped_coverage,
        kid_mean=kernel.mean,
        kid_std=kernel.std,
        errors=errors,
        intervals=intervals,
        protocol={
            "extractor": extractor.identity,
            "num_images": num_images,
            **extra,
            "reference": {
                **extra.get("reference", {}),
                "num_images": real.stats.count,
                "num_neighbour_images": num_real,
            },
            "metrics": to_dict(config),
            "definitions": {
                "images": "uint8, rounded half up",
                "inception_score": "one split, independent of the order",
                "kid": "unbiased, cubic kernel, mean and standard deviation over subsets",
                "clipped_density, clipped_coverage": "arXiv 2507.01761; the share of good images",
                "sfid": "Fréchet distance of the first 7 channels of mixed_6/conv, 17 x 17",
                "intervals": "95%, "
                + (
                    f"jackknife leaving out each of {config.num_resamples} random groups of "
                    "generated images; reference fixed, finite-sample bias not corrected; those of "
                    "recall and coverage are conservative, 1.3 to 1.65 times too wide"
                    if config.num_resamples
                    else "binomial; recall and coverage over reference images"
                ),
            },
            "warnings": _warnings(generated, real),
            "versions": library_versions(),
            "comparison_seconds": round(time.monotonic() - started, 1),
        },
    )


def _errors(
    generated: FeatureSet,
    real: FeatureSet,
    manifold: ManifoldMetrics,
    kernel: KernelDistance,
    config: MetricsConfig,
) -> dict[str, float]:
    """Standard errors by metric."""
    features, reference = generated.pooled, real.pooled
    if not config.num_resamples:
        return {
            "precision": binomial_error(manifold.precision, len(features)),
            "recall": binomial_error(manifold.recall, len(reference)),
            "coverage": binomial_error(manifold.coverage, len(reference)),
        }
    groups = deal_groups(len(features), config.num_resamples)
    without = {
        "gfid": frechet_without(features, groups, real.stats),
        "kid_mean": kernel_without(features, reference, groups),
        **manifold_without(
            features,
            reference,
            groups,
            neighbors=config.neighbors,
            density_neighbors=config.density_neighbors,
        ),
    }
    if generated.logits is not None:
        without["inception_score"] = inception_without(generated.logits, groups)
    errors = {name: jackknife_error(values) for name, values in without.items()}
    # KID is a mean over random subsets, whose choice adds its own variance.
    subsets = kernel.std**2 / config.kid_subsets
    return errors | {"kid_mean": math.sqrt(errors["kid_mean"] ** 2 + subsets)}


def _warnings(generated: FeatureSet, real: FeatureSet) -> list[str]:
    return [
        f"{stats.count} {name} images for {stats.mean.numel()} features: the covariance lacks full "
        "rank, gFID is biased upwards and only comparable at equal counts"
        for name, stats in (("generated", generated.stats), ("reference", real.stats))
        if stats.is_rank_deficient
    ]

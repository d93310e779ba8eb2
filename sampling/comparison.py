"""Distances between a set of generated images and a set of real ones, with their protocol.

FID, KID, Inception Score, precision, recall, density and coverage on one extractor's features. A
result without extractor, sample counts and reference means nothing, so they travel with it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from common.config import config_class, to_dict
from common.extractors import ExtractorConfig, FeatureExtractor, InceptionFeatures, build_extractor
from common.metrics import (
    binomial_error,
    bootstrap_error,
    frechet_distance,
    inception_score,
    kernel_distance,
    library_versions,
    manifold_metrics,
    save_metrics,
)
from common.reference import (
    FeatureSet,
    ImageSource,
    TensorImages,
    default_cache,
    extract_features,
    reference_features,
)


@config_class
class MetricsConfig:
    """How two sets of images are compared.

    Args:
        extractor: Inception for numbers to publish; efficientnet_lite0 works offline.
        batch_size: images whose features are extracted at once.
        neighbors: k of precision and recall.
        density_neighbors: k of density and coverage.
        kid_subsets: number of random subsets of KID.
        kid_subset_size: images of a subset.
        max_reference: reference images that enter KID, precision, recall, density and coverage,
            spread evenly; FID uses all of them.
        num_resamples: bootstrap resamples for the standard error of gFID; 0 for none.
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


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics with their protocol.

    `errors` holds standard errors: binomial ones of precision (over generated images), recall and
    coverage (over reference images), and gFID's over resampled generated images when asked for.
    """

    gfid: float
    inception_score: float | None
    precision: float
    recall: float
    density: float
    coverage: float
    kid_mean: float
    kid_std: float
    errors: dict[str, float]
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Writes JSON, atomically."""
        save_metrics(self.to_dict(), path)

    def markdown(self, name: str) -> str:
        """A table of one row, with extractor and counts."""
        score = "-" if self.inception_score is None else f"{self.inception_score:.2f}"
        extractor = self.protocol["extractor"]
        cells = {
            "model": name,
            "gFID": f"{self.gfid:.2f}",
            "IS": score,
            "precision": f"{self.precision:.3f}",
            "recall": f"{self.recall:.3f}",
            "density": f"{self.density:.3f}",
            "coverage": f"{self.coverage:.3f}",
            "KID x 1000": f"{1000 * self.kid_mean:.3f} ± {1000 * self.kid_std:.3f}",
            "extractor": f"{extractor['name']} ({extractor['resize']})",
            "images": str(self.protocol["num_images"]),
            "reference images": str(self.protocol["reference"]["num_images"]),
        }
        rows = (cells.keys(), ["---"] * len(cells), cells.values())
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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


def compare_features(
    generated: FeatureSet,
    reference: ImageSource,
    extractor: FeatureExtractor,
    config: MetricsConfig,
    protocol: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """Compares features with the images of a source, whose features are cached by content.

    Args:
        protocol: what else is known about the generated images and the reference.
    """
    started = time.monotonic()
    real = reference_features(
        reference,
        extractor,
        batch_size=config.batch_size,
        max_kept=config.max_reference,
        cache=default_cache(),
    )
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
    num_images, num_real = len(generated.pooled), len(real.pooled)
    errors = {
        "precision": binomial_error(manifold.precision, num_images),
        "recall": binomial_error(manifold.recall, num_real),
        "coverage": binomial_error(manifold.coverage, num_real),
    }
    if config.num_resamples:
        errors["gfid"] = bootstrap_error(
            generated.pooled, real.stats, num_resamples=config.num_resamples
        )
    extra = dict(protocol or {})
    return EvaluationResult(
        gfid=frechet_distance(generated.stats, real.stats),
        inception_score=None if generated.logits is None else inception_score(generated.logits),
        precision=manifold.precision,
        recall=manifold.recall,
        density=manifold.density,
        coverage=manifold.coverage,
        kid_mean=kernel.mean,
        kid_std=kernel.std,
        errors=errors,
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
            },
            "warnings": _warnings(generated, real),
            "versions": library_versions(),
            "comparison_seconds": round(time.monotonic() - started, 1),
        },
    )


def _warnings(generated: FeatureSet, real: FeatureSet) -> list[str]:
    return [
        f"{stats.count} {name} images for {stats.mean.numel()} features: the covariance lacks full "
        "rank, gFID is biased upwards and only comparable at equal counts"
        for name, stats in (("generated", generated.stats), ("reference", real.stats))
        if stats.is_rank_deficient
    ]

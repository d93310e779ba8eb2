"""Distances of feature sets: Fréchet distance, KID, Inception Score, precision, recall.

torch-fidelity's functions applied to features in memory; density, coverage and their clipped forms
are those of `balls`. Nothing here knows where features come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import (
    KEY_METRIC_KID_MEAN,
    KEY_METRIC_KID_STD,
    kid_features_to_metric,
)
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)

from lambda24.common.metrics.balls import CHUNK, ball_metrics


@dataclass(frozen=True)
class FeatureStats:
    """`mean` `(D,)` and `covariance` `(D, D)` (divided by N - 1) of N features, float64."""

    mean: Tensor
    covariance: Tensor
    count: int

    @property
    def is_rank_deficient(self) -> bool:
        """Too few features for a full covariance: Fréchet distances are then biased upwards."""
        return self.count <= self.mean.numel()


class MomentAccumulator:
    """Mean and covariance of a stream of features, in float64 around the first batch's mean."""

    def __init__(self) -> None:
        self.count = 0
        self._shift = self._sum = self._outer = torch.zeros(0, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Adds features `(N, D)`."""
        for chunk in features.split(CHUNK):
            values = chunk.double()
            if self.count == 0:
                self._shift = values.mean(dim=0)
                self._sum = torch.zeros_like(self._shift)
                self._outer = values.new_zeros(values.shape[1], values.shape[1])
            centred = values - self._shift
            self.count += len(values)
            self._sum += centred.sum(dim=0)
            self._outer.addmm_(centred.T, centred)

    def stats(self) -> FeatureStats:
        """Raises ValueError below two features."""
        return self._stats(self.count, self._sum, self._outer)

    def without(self, features: Tensor) -> FeatureStats:
        """Statistics of all but these features `(n, D)`, which were added before."""
        centred = features.double() - self._shift
        outer = torch.addmm(self._outer, centred.T, centred, alpha=-1)
        return self._stats(self.count - len(features), self._sum - centred.sum(dim=0), outer)

    def _stats(self, count: int, total: Tensor, outer: Tensor) -> FeatureStats:
        if count < 2:
            raise ValueError(f"feature statistics need at least 2 images, got {count}")
        mean = total / count
        covariance = (outer - count * torch.outer(mean, mean)) / (count - 1)
        return FeatureStats(self._shift + mean, covariance, count)


def feature_stats(features: Tensor) -> FeatureStats:
    """Mean and covariance of features `(N, D)`."""
    accumulator = MomentAccumulator()
    accumulator.update(features)
    return accumulator.stats()


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """|μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½), the FID when the features are Inception's."""
    _check_widths(a.mean, b.mean)
    statistics = [{"mu": s.mean.numpy(), "sigma": s.covariance.numpy()} for s in (a, b)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation over subsets of the unbiased squared MMD."""

    mean: float
    std: float


def kernel_distance(
    a: Tensor, b: Tensor, *, num_subsets: int, subset_size: int, seed: int = 0
) -> KernelDistance:
    """KID of features `(N, D)` and `(M, D)`: cubic kernel (x·y / D + 1)³, seeded random subsets.

    Raises:
        ValueError: a subset larger than one of the sets.
    """
    _check_widths(a, b)
    if subset_size > min(len(a), len(b)):
        raise ValueError(
            f"kid_subset_size {subset_size} exceeds the number of images, {len(a)} and {len(b)}"
        )
    values = kid_features_to_metric(
        a.double(),
        b.double(),
        kid_subsets=num_subsets,
        kid_subset_size=subset_size,
        rng_seed=seed,
        verbose=False,
    )
    return KernelDistance(values[KEY_METRIC_KID_MEAN], values[KEY_METRIC_KID_STD])


def inception_score(logits: Tensor) -> float:
    """exp E KL(p(y|x) || p(y)) over all images at once, so their order does not matter.

    Published scores average 10 splits, which depends on the order and is slightly lower.
    """
    return float(isc_features_to_metric(logits, splits=1, shuffle=False)[KEY_METRIC_ISC_MEAN])


@dataclass(frozen=True)
class ManifoldMetrics:
    """How much of one set lies within the other's nearest-neighbour balls."""

    precision: float
    recall: float
    density: float
    coverage: float
    clipped_density: float
    clipped_coverage: float


def manifold_metrics(
    generated: Tensor, reference: Tensor, *, neighbors: int = 3, density_neighbors: int = 5
) -> ManifoldMetrics:
    """Precision and recall (Kynkäänniemi et al. 2019), and the metrics of `balls`.

    Args:
        generated: features `(N, D)`.
        reference: features `(M, D)`.
        neighbors: k of the balls of precision and recall.
        density_neighbors: k of the balls of density and coverage, clipped or not.

    Raises:
        ValueError: sets that do not have more points than neighbours.
    """
    _check_widths(generated, reference)
    needed, smallest = max(neighbors, density_neighbors) + 1, min(len(generated), len(reference))
    if smallest < needed:
        raise ValueError(
            f"precision and recall with {needed - 1} neighbours need at least {needed} images, "
            f"got {len(generated)} generated and {len(reference)} of the reference"
        )
    values = prc_features_to_metric(
        generated,
        reference,
        prc_neighborhood=neighbors,
        prc_batch_size=CHUNK,
        save_cpu_ram=True,
        verbose=False,
    )
    balls = ball_metrics(generated, reference, density_neighbors)
    return ManifoldMetrics(
        precision=values[KEY_METRIC_PRECISION],
        recall=values[KEY_METRIC_RECALL],
        density=balls.density,
        coverage=balls.coverage,
        clipped_density=balls.clipped_density,
        clipped_coverage=balls.clipped_coverage,
    )


def _check_widths(a: Tensor, b: Tensor) -> None:
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"features of different extractors: {a.shape[-1]} and {b.shape[-1]} numbers each"
        )

"""Image quality metrics: pixels (PSNR, SSIM) and distributions of features (FID, KID, IS, P/R).

The distribution metrics are torch-fidelity's functions applied to features in memory; density and
coverage are added in the same style. Nothing here knows where images or features come from.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
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
    calc_cdist_part,
    prc_features_to_metric,
)

MAX_PSNR = 100.0  # of identical images, where the definition gives infinity
CHUNK = 2_000  # rows of a distance matrix held at once


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """10 log10(255² / MSE) of each pair of uint8 images `(N, 3, H, W)`, `(N,)` float64, in dB.

    The error is averaged over the pixels and channels of one image; identical images give 100 dB.
    Report the mean over images of this, not the PSNR of the mean error.
    """
    _check_pairs(images, reference)
    error = (images.double() - reference.double()).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(255**2 / error)).clamp(max=MAX_PSNR)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each pair of uint8 images `(N, 3, H, W)`, `(N,)` float64.

    Wang et al. 2004: Gaussian window of 11 pixels and sigma 1.5, K = (0.01, 0.03), range 255, only
    windows inside the image, mean over windows and RGB channels. What pytorch-msssim computes.

    Raises:
        ValueError: images smaller than the window.
    """
    _check_pairs(images, reference)
    if min(images.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs images of at least 11 pixels, got {tuple(images.shape[-2:])}")
    offsets = torch.arange(-5, 6, dtype=torch.float64, device=images.device)
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = window / window.sum()

    def blur(x: Tensor) -> Tensor:
        rows = F.conv2d(x, window.view(1, 1, 11, 1))
        return F.conv2d(rows, window.view(1, 1, 1, 11))

    x = rearrange(images.double(), "n c h w -> (n c) 1 h w")
    y = rearrange(reference.double(), "n c h w -> (n c) 1 h w")
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)  # Eq. 13
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return rearrange(similarity, "(n c) 1 h w -> n (c h w)", c=3).mean(dim=1)


def _check_pairs(images: Tensor, reference: Tensor) -> None:
    for name, value in (("images", images), ("reference", reference)):
        if value.dtype != torch.uint8 or value.ndim != 4 or value.shape[1] != 3:
            raise ValueError(
                f"{name} must be uint8 (N, 3, H, W), got {value.dtype} {tuple(value.shape)}"
            )
    if images.shape != reference.shape:
        raise ValueError(
            f"images and reference must have one shape, got {tuple(images.shape)} "
            f"and {tuple(reference.shape)}"
        )


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
        values = features.double()
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
        if self.count < 2:
            raise ValueError(f"feature statistics need at least 2 images, got {self.count}")
        mean = self._sum / self.count
        covariance = (self._outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return FeatureStats(self._shift + mean, covariance, self.count)


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
    """Fractions of one set that lie within the other's nearest-neighbour balls."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_metrics(
    generated: Tensor, reference: Tensor, *, neighbors: int = 3, density_neighbors: int = 5
) -> ManifoldMetrics:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Args:
        generated: features `(N, D)`.
        reference: features `(M, D)`.
        neighbors: k of the balls of precision and recall.
        density_neighbors: k of the balls of density and coverage.

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
    density, coverage = _density_coverage(generated, reference, density_neighbors)
    return ManifoldMetrics(
        values[KEY_METRIC_PRECISION], values[KEY_METRIC_RECALL], density, coverage
    )


def _density_coverage(generated: Tensor, reference: Tensor, neighbors: int) -> tuple[float, float]:
    radii = torch.cat(
        [
            calc_cdist_part(chunk, reference, CHUNK).kthvalue(neighbors + 1, dim=1).values
            for chunk in reference.split(CHUNK)
        ]
    )  # (M,); the nearest neighbour of a point is the point itself
    num_inside = 0
    nearest = torch.full_like(radii, math.inf)
    for chunk in generated.split(CHUNK):
        distances = calc_cdist_part(chunk, reference, CHUNK)  # (n, M)
        num_inside += int((distances < radii).sum())
        nearest = torch.minimum(nearest, distances.amin(dim=0))
    coverage = (nearest < radii).double().mean().item()
    return num_inside / (neighbors * len(generated)), coverage


def _check_widths(a: Tensor, b: Tensor) -> None:
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"features of different extractors: {a.shape[-1]} and {b.shape[-1]} numbers each"
        )


def bootstrap_error(
    features: Tensor, reference: FeatureStats, *, num_resamples: int, seed: int = 0
) -> float:
    """Standard error of the Fréchet distance over resampled images; the reference stays fixed."""
    rng = np.random.default_rng(seed)
    values = [
        frechet_distance(
            feature_stats(
                features[torch.from_numpy(rng.integers(len(features), size=len(features)))]
            ),
            reference,
        )
        for _ in range(num_resamples)
    ]
    return float(np.std(values, ddof=1))


def binomial_error(fraction: float, count: int) -> float:
    """Standard error of a fraction of `count` independent images."""
    return math.sqrt(fraction * (1 - fraction) / count)


def library_versions() -> dict[str, str]:
    """Versions that a metric can depend on, for protocols."""
    names = ("torch", "torch-fidelity", "timm", "numpy")
    return {name: version(name) for name in names}


def save_metrics(metrics: Mapping[str, Any], path: str | Path) -> None:
    """Writes metrics as JSON under a temporary name and renames it; makes parent folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)

"""Density, coverage and their clipped forms, by nearest-neighbour balls around real features.

Density and coverage are Naeem et al.'s (2020). Clipped Density and Clipped Coverage are those of
Salvy et al. (arXiv 2507.01761): balls of outliers shrink to the median radius, no image counts for
more than one, and values are calibrated so that a fraction of good images scores that fraction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betaln, gammaln
from torch import Tensor
from torch_fidelity.metric_prc import calc_cdist_part

CHUNK = 2_000  # rows of a distance matrix held at once


@dataclass(frozen=True)
class RealBalls:
    """Balls around M real features.

    Args:
        neighbors: k, the neighbour that a ball reaches to.
        radii: `(M,)`.
        clipped: `(M,)`, at most the median radius.
        occupancy: mean over real features of min(1, clipped balls that hold it / k), the clipped
            density of the reference itself.
    """

    neighbors: int
    radii: Tensor
    clipped: Tensor
    occupancy: float


def real_balls(reference: Tensor, neighbors: int) -> RealBalls:
    """Balls of real features `(M, D)`, M > neighbors."""
    found = [
        calc_cdist_part(chunk, reference, CHUNK).topk(neighbors + 1, dim=1, largest=False)
        for chunk in reference.split(CHUNK)
    ]
    # The nearest neighbour of a point is the point itself.
    distances = torch.cat([part.values for part in found])[:, 1:]  # (M, k), rising
    ids = torch.cat([part.indices for part in found])[:, 1:]
    radii = distances[:, -1].contiguous()
    clipped = radii.clamp(max=radii.quantile(0.5).item())
    inside = ids[distances <= clipped[:, None]]  # once for each ball that holds a point
    counts = torch.bincount(inside, minlength=len(reference))
    occupancy = clipped_share(counts, neighbors).mean().item()
    return RealBalls(neighbors, radii, clipped, occupancy)


@dataclass(frozen=True)
class BallMetrics:
    """Of generated features against balls of real ones."""

    density: float
    coverage: float
    clipped_density: float
    clipped_coverage: float


def ball_metrics(generated: Tensor, reference: Tensor, neighbors: int) -> BallMetrics:
    """Density, coverage and their clipped forms of `(N, D)` against `(M, D)`, both above k."""
    balls = real_balls(reference, neighbors)
    num_inside = 0
    held: list[Tensor] = []  # clipped balls that hold each generated feature
    found = torch.zeros(len(reference), dtype=torch.int64)  # generated features in each ball
    for chunk in generated.split(CHUNK):
        distances = calc_cdist_part(chunk, reference, CHUNK)  # (n, M)
        inside = distances < balls.radii
        num_inside += int(inside.sum())
        found += inside.sum(dim=0)
        held.append((distances <= balls.clipped).sum(dim=1))
    share = clipped_share(torch.cat(held), neighbors).mean().item()
    reached = clipped_share(found, neighbors).mean().item()
    return BallMetrics(
        density=num_inside / (neighbors * len(generated)),
        coverage=(found > 0).double().mean().item(),
        clipped_density=calibrated_density(share, balls),
        clipped_coverage=calibrated_coverage(reached, len(generated), len(reference), neighbors),
    )


def clipped_share(counts: Tensor, neighbors: int) -> Tensor:
    """min(1, counts / k), float64."""
    return (counts.double() / neighbors).clamp(max=1)


def calibrated_density(share: float, balls: RealBalls) -> float:
    """Relative to what the reference itself reaches, at most 1."""
    return min(1.0, share / balls.occupancy) if balls.occupancy else math.nan


def calibrated_coverage(reached: float, num_generated: int, num_real: int, neighbors: int) -> float:
    """The fraction of `num_generated` images that, if good and the rest bad, would reach so much.

    The inverse of `expected_coverage`, linear between whole numbers of images.
    """
    curve = expected_coverage(num_generated, num_real, neighbors)
    return float(np.interp(reached, curve, np.arange(num_generated + 1) / num_generated))


def expected_coverage(num_generated: int, num_real: int, neighbors: int) -> np.ndarray:
    """E min(k, B) / k for 0, 1, ..., N generated features of the real distribution, `(N + 1,)`.

    The mass of a ball that reaches to the k-th of M - 1 other real features is Beta(k, M - k)
    distributed, whatever the distribution, so B, the generated ones inside, is beta-binomial.
    """
    k, m = neighbors, np.arange(num_generated + 1)[:, None]  # (N + 1, 1)
    b = np.minimum(np.arange(k), m)  # (N + 1, k); beyond m the probability is zero
    log_binomial = gammaln(m + 1) - gammaln(b + 1) - gammaln(m - b + 1)
    log_p = log_binomial + betaln(b + k, m - b + num_real - k) - betaln(k, num_real - k)
    probability = np.where(np.arange(k) <= m, np.exp(log_p), 0.0)
    # E min(k, B) = k - sum over b < k of (k - b) P(B = b).
    curve: np.ndarray = 1 - (probability * (k - np.arange(k))).sum(axis=1) / k
    return np.maximum.accumulate(curve.clip(0, 1))  # rises but for rounding

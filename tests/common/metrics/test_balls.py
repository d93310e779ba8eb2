"""Clipped Density and Clipped Coverage against their definitions, point by point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import betabinom
from torch import Tensor

from lambda24.common.metrics import balls
from lambda24.common.metrics.balls import (
    ball_metrics,
    calibrated_coverage,
    expected_coverage,
    real_balls,
)


def normal(count: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift


def clipped_density(generated: np.ndarray, real: np.ndarray, k: int) -> float:
    """One point and one ball at a time."""
    radii = []
    for i, centre in enumerate(real):
        others = [np.linalg.norm(centre - x) for j, x in enumerate(real) if j != i]
        radii.append(sorted(others)[k - 1])
    radii = [min(radius, float(np.median(radii))) for radius in radii]

    def score(point: np.ndarray, without: int | None = None) -> float:
        inside = [
            np.linalg.norm(point - centre) <= radius + 1e-9
            for j, (centre, radius) in enumerate(zip(real, radii, strict=True))
            if j != without
        ]
        return min(1.0, sum(inside) / k)

    ours = np.mean([score(point) for point in generated])
    best = np.mean([score(point, without=i) for i, point in enumerate(real)])
    return float(min(1.0, ours / best))


def clipped_coverage(generated: np.ndarray, real: np.ndarray, k: int) -> float:
    shares = []
    for i, centre in enumerate(real):
        others = [np.linalg.norm(centre - x) for j, x in enumerate(real) if j != i]
        radius = sorted(others)[k - 1]
        inside = sum(np.linalg.norm(centre - x) < radius for x in generated)
        shares.append(min(inside, k) / k)
    n, m = len(generated), len(real)
    curve = [
        sum(betabinom.pmf(b, count, k, m - k) * min(b, k) / k for b in range(count + 1))
        for count in range(n + 1)
    ]
    found = float(np.mean(shares))
    for good in range(n):  # where the curve passes the mean
        if curve[good] <= found < curve[good + 1]:
            step = (found - curve[good]) / (curve[good + 1] - curve[good])
            return (good + step) / n
    return 1.0


@pytest.mark.parametrize(("k", "shift"), [(5, 0.0), (3, 0.5), (1, 1.0)])
def test_they_agree_with_their_definitions(k: int, shift: float) -> None:
    generated, real = normal(60, 5, seed=1, shift=shift), normal(50, 5, seed=2)
    real[:4] *= 5  # outliers, whose balls are large
    found = ball_metrics(generated, real, k)
    pair = generated.double().numpy(), real.double().numpy()
    assert found.clipped_density == pytest.approx(clipped_density(*pair, k), abs=1e-6)
    assert found.clipped_coverage == pytest.approx(clipped_coverage(*pair, k), abs=1e-6)
    assert 0 < found.clipped_density < 1
    assert 0 < found.clipped_coverage < 1


@pytest.mark.parametrize(("n", "m", "k"), [(30, 20, 5), (7, 100, 3), (50, 8, 1)])
def test_expected_coverage_is_the_mean_of_a_beta_binomial(n: int, m: int, k: int) -> None:
    expected = [
        sum(betabinom.pmf(b, count, k, m - k) * min(b, k) / k for b in range(count + 1))
        for count in range(n + 1)
    ]
    np.testing.assert_allclose(expected_coverage(n, m, k), expected, atol=1e-10)


def test_expected_coverage_is_finite_for_many_images() -> None:
    curve = expected_coverage(50_000, 10_000, 5)
    assert curve[0] == 0
    assert (np.diff(curve) >= 0).all()
    assert 0.99 < curve[-1] <= 1
    assert calibrated_coverage(1.0, 50_000, 10_000, 5) == 1


@pytest.mark.parametrize("good", [0.0, 0.25, 0.6, 1.0])
def test_a_share_of_good_images_scores_that_share(good: float) -> None:
    """The others lie far away; density and coverage say something else."""
    values = []
    for seed in range(6):
        real, generated = normal(400, 6, seed=seed), normal(400, 6, seed=seed + 100)
        generated[round(400 * good) :] += 1000
        found = ball_metrics(generated, real, 5)
        values.append((found.clipped_density, found.clipped_coverage, found.coverage))
    density, coverage, plain = np.mean(values, axis=0)
    assert density == pytest.approx(good, abs=0.05)
    assert coverage == pytest.approx(good, abs=0.05)
    if 0 < good < 1:
        assert plain > good + 0.1


def test_copies_of_one_real_image_do_not_look_dense() -> None:
    """Where density counts every ball around them, clipped density counts one image as one."""
    real = normal(300, 4, seed=0)
    middle = real.norm(dim=1).argmin()
    found = ball_metrics(real[middle].repeat(300, 1), real, 5)
    assert found.density > 1.3
    assert found.clipped_density == 1
    assert found.clipped_coverage < 0.1


def test_they_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, real = normal(150, 6, seed=9), normal(130, 6, seed=10, shift=0.4)
    whole, around = ball_metrics(generated, real, 5), real_balls(real, 5)
    monkeypatch.setattr(balls, "CHUNK", 32)
    assert ball_metrics(generated, real, 5) == whole
    assert real_balls(real, 5).occupancy == around.occupancy

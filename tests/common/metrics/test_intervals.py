import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lambda24.common.metrics.distances import (
    feature_stats,
    frechet_distance,
    inception_score,
    manifold_metrics,
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


def normal(count: int, dim: int, *, seed: int, shift: float = 0.0, law: int = 0) -> Tensor:
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(law)) / math.sqrt(dim)
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) @ mixing + shift


GROUPS = deal_groups(120, 7)
GENERATED, REAL = normal(120, 6, seed=1), normal(100, 6, seed=2, shift=0.3)


def left_out(values: Tensor) -> list[Tensor]:
    return [values[group != GROUPS] for group in range(7)]


def test_groups_are_equal_random_and_repeat() -> None:
    counts = torch.bincount(GROUPS)
    assert counts.tolist() == [18] + [17] * 6
    assert torch.equal(GROUPS, deal_groups(120, 7))
    assert not torch.equal(GROUPS, torch.arange(120) % 7)
    with pytest.raises(ValueError, match=r"\[2, 5\] for 10 images, got 6"):
        deal_groups(10, 6)


def test_frechet_distance_without_each_group() -> None:
    reference = feature_stats(REAL)
    expected = [frechet_distance(feature_stats(part), reference) for part in left_out(GENERATED)]
    assert frechet_without(GENERATED, GROUPS, reference).tolist() == pytest.approx(expected)


def test_inception_score_without_each_group() -> None:
    logits = 3 * GENERATED
    expected = [inception_score(part) for part in left_out(logits)]
    assert inception_without(logits, GROUPS).tolist() == pytest.approx(expected)


def test_kernel_distance_without_each_group() -> None:
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x.double() @ y.double().T / 6 + 1) ** 3

    expected = []
    for part in left_out(GENERATED):
        inner = kernel(part, part).sum() - kernel(part, part).diagonal().sum()
        count = len(part)
        expected.append(float(inner / (count * (count - 1)) - 2 * kernel(part, REAL).mean()))
    found = kernel_without(GENERATED, REAL, GROUPS).tolist()
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("chunk", [500, 16])
def test_manifold_metrics_without_each_group(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("lambda24.common.metrics.intervals.CHUNK", chunk)
    found = manifold_without(GENERATED, REAL, GROUPS, neighbors=3, density_neighbors=5)
    for group, part in enumerate(left_out(GENERATED)):
        expected = manifold_metrics(part, REAL, neighbors=3, density_neighbors=5)
        for name, values in found.items():
            assert values[group].item() == pytest.approx(getattr(expected, name), abs=1e-6), name
        assert 0 < expected.recall < 1


def test_errors_match_repeated_sampling() -> None:
    reference = feature_stats(normal(5000, 4, seed=11))
    draws = [normal(400, 4, seed=seed, shift=0.3) for seed in range(60)]
    spread = np.std([frechet_distance(feature_stats(part), reference) for part in draws], ddof=1)
    groups = deal_groups(400, 50)
    errors = [jackknife_error(frechet_without(part, groups, reference)) for part in draws[:8]]
    assert np.mean(errors) == pytest.approx(spread, rel=0.25)
    assert errors[0] == pytest.approx(spread, rel=0.4)


def test_errors_of_nearest_neighbour_fractions_are_conservative() -> None:
    reference = normal(200, 6, seed=11)
    draws = [normal(200, 6, seed=seed, shift=0.3) for seed in range(60)]
    found = [manifold_metrics(part, reference) for part in draws]
    groups = deal_groups(200, 20)
    without = [
        manifold_without(part, reference, groups, neighbors=3, density_neighbors=5)
        for part in draws[:8]
    ]
    for name in ("recall", "coverage"):
        spread = np.std([getattr(metrics, name) for metrics in found], ddof=1)
        errors = [jackknife_error(values[name]) for values in without]
        assert 0.8 < np.mean(errors) / spread < 2.2, name


def test_error_of_a_mean_is_the_textbook_one() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double()
    without = (values.sum() - values) / 999
    assert jackknife_error(without) == pytest.approx(values.std().item() / math.sqrt(1000))


def test_intervals() -> None:
    assert half_width(1.0) == pytest.approx(1.96, abs=1e-3)
    assert half_width(2.0, 50) == pytest.approx(2 * 2.0096, abs=1e-3)
    assert half_width(1.0, 2) == pytest.approx(12.706, abs=1e-3)


def test_binomial_error() -> None:
    assert binomial_error(0.5, 100) == pytest.approx(0.05)

import math

import joblib
import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from lambda24.common.metrics.distances import (
    FeatureStats,
    MomentAccumulator,
    feature_stats,
    frechet_distance,
    inception_score,
    kernel_distance,
    manifold_metrics,
)


def normal(count: int, dim: int, *, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator) / math.sqrt(dim)
    return torch.randn(count, dim, generator=generator) @ mixing + shift


def test_moments_of_a_stream_are_numpys() -> None:
    features = normal(300, 8, seed=0, shift=1000.0)
    accumulator = MomentAccumulator()
    for batch in features.split(77):
        accumulator.update(batch)
    stats = accumulator.stats()
    values = features.double().numpy()
    np.testing.assert_allclose(stats.mean.numpy(), values.mean(axis=0), rtol=1e-12)
    covariance = np.cov(values, rowvar=False)
    np.testing.assert_allclose(stats.covariance.numpy(), covariance, rtol=1e-9, atol=1e-12)
    assert not stats.is_rank_deficient
    assert feature_stats(features[:8]).is_rank_deficient


def test_moments_need_two_images() -> None:
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        feature_stats(normal(1, 4, seed=0))


def scipy_frechet(a: FeatureStats, b: FeatureStats) -> float:
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
    trace = torch.trace(a.covariance + b.covariance).item() - 2 * np.trace(root)
    return float((a.mean - b.mean).square().sum().item() + trace)


def test_frechet_distance_agrees_with_the_matrix_square_root() -> None:
    a, b = feature_stats(normal(500, 32, seed=1)), feature_stats(normal(700, 32, seed=2, shift=0.3))
    assert frechet_distance(a, b) == pytest.approx(scipy_frechet(a, b), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)


def test_frechet_distance_of_shifted_features_is_the_squared_shift() -> None:
    a = normal(400, 16, seed=3)
    assert frechet_distance(feature_stats(a), feature_stats(a + 2)) == pytest.approx(64, rel=1e-5)


def test_frechet_distance_survives_rank_deficient_covariances() -> None:
    a, b = normal(40, 128, seed=4), normal(50, 128, seed=5)
    distance = frechet_distance(feature_stats(a), feature_stats(b))
    # Independent route: the trace of the root is the nuclear norm of the crossed centred features.
    x, y = (v.double() - v.double().mean(dim=0) for v in (a, b))
    nuclear = torch.linalg.svdvals(x @ y.T).sum() / math.sqrt(39 * 49)
    means = (a.double().mean(dim=0) - b.double().mean(dim=0)).square().sum()
    expected = means + x.square().sum() / 39 + y.square().sum() / 49 - 2 * nuclear
    assert distance == pytest.approx(expected.item(), rel=1e-5)
    assert frechet_distance(feature_stats(a), feature_stats(a)) == pytest.approx(0, abs=1e-4)


def test_feature_widths_must_agree() -> None:
    a, b = normal(20, 4, seed=0), normal(20, 5, seed=0)
    with pytest.raises(ValueError, match="4 and 5"):
        frechet_distance(feature_stats(a), feature_stats(b))
    with pytest.raises(ValueError, match="4 and 5"):
        kernel_distance(a, b, num_subsets=2, subset_size=10)
    with pytest.raises(ValueError, match="4 and 5"):
        manifold_metrics(a, b)


def test_kernel_distance_is_near_zero_only_for_equal_distributions() -> None:
    sample = normal(2000, 16, seed=6)
    same = kernel_distance(sample[:1000], sample[1000:], num_subsets=40, subset_size=200)
    # The mean of an unbiased estimate is zero; 5 standard errors of the independent part.
    assert abs(same.mean) < 5 * same.std / math.sqrt(1000 / 200)
    other = kernel_distance(sample[:1000], sample[1000:] + 0.5, num_subsets=40, subset_size=200)
    assert other.mean > 10 * abs(same.mean)
    assert other.mean > 3 * other.std


def test_kernel_distance_is_the_unbiased_estimate() -> None:
    a, b = normal(30, 5, seed=7).double(), normal(30, 5, seed=8).double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / 5 + 1) ** 3

    inner = sum((kernel(x, x).sum() - kernel(x, x).diagonal().sum()) / (30 * 29) for x in (a, b))
    expected = inner - 2 * kernel(a, b).mean()
    # One subset of everything is the estimate itself.
    value = kernel_distance(a, b, num_subsets=1, subset_size=30)
    assert value.mean == pytest.approx(float(expected), rel=1e-9)


def test_kernel_distance_refuses_subsets_larger_than_the_sets() -> None:
    with pytest.raises(ValueError, match=r"kid_subset_size 50 .* 60 and 40"):
        kernel_distance(normal(60, 4, seed=0), normal(40, 4, seed=1), num_subsets=2, subset_size=50)


def test_inception_score_of_known_distributions() -> None:
    certain = 100 * torch.eye(10).repeat(7, 1)
    assert inception_score(certain) == pytest.approx(10, rel=1e-6)
    assert inception_score(torch.zeros(20, 10)) == pytest.approx(1, rel=1e-9)


def test_inception_score_ignores_the_order() -> None:
    logits = 3 * torch.randn(500, 20, generator=torch.Generator().manual_seed(0))
    by_class = logits[logits.argmax(dim=1).argsort()]
    assert inception_score(by_class) == pytest.approx(inception_score(logits), rel=1e-12)


def balls(points: Tensor, neighbors: int) -> Tensor:
    distances = (points[:, None] - points[None]).double().norm(dim=-1)
    return distances.sort(dim=1).values[:, neighbors]


def test_manifold_metrics_agree_with_their_definitions() -> None:
    generated, real = normal(150, 6, seed=9), normal(130, 6, seed=10, shift=0.4)
    values = manifold_metrics(generated, real, neighbors=3, density_neighbors=5)
    cross = (generated[:, None] - real[None]).double().norm(dim=-1)  # (N, M)
    inside = cross <= balls(real, 3)
    assert values.precision == pytest.approx(inside.any(dim=1).double().mean().item())
    reached = cross <= balls(generated, 3)[:, None]
    assert values.recall == pytest.approx(reached.any(dim=0).double().mean().item())
    inside = cross < balls(real, 5)
    assert values.density == pytest.approx(inside.double().sum().item() / (5 * 150))
    assert values.coverage == pytest.approx(inside.any(dim=0).double().mean().item())
    assert 0 < values.precision < 1
    assert 0 < values.recall < 1


def test_manifold_metrics_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, real = normal(150, 6, seed=9), normal(130, 6, seed=10, shift=0.4)
    whole = manifold_metrics(generated, real)
    monkeypatch.setattr("lambda24.common.metrics.distances.CHUNK", 32)
    monkeypatch.setattr("lambda24.common.metrics.balls.CHUNK", 32)
    assert manifold_metrics(generated, real) == whole


def test_manifold_metrics_need_more_images_than_neighbours() -> None:
    with pytest.raises(ValueError, match="at least 6 images, got 5 generated and 30"):
        manifold_metrics(normal(5, 4, seed=0), normal(30, 4, seed=1))


def test_moments_without_a_part_are_those_of_the_rest() -> None:
    features = normal(300, 8, seed=0, shift=100.0)
    accumulator = MomentAccumulator()
    for batch in features.split(77):
        accumulator.update(batch)
    rest = accumulator.without(features[40:90])
    expected = feature_stats(torch.cat([features[:40], features[90:]]))
    torch.testing.assert_close(rest.mean, expected.mean)
    torch.testing.assert_close(rest.covariance, expected.covariance)
    assert rest.count == 250


def test_manifold_metrics_are_those_of_the_prdc_package() -> None:
    prdc = pytest.importorskip("prdc")
    generated, real = normal(400, 16, seed=9), normal(350, 16, seed=10, shift=0.2)
    with joblib.parallel_config(backend="sequential"):  # or it starts eight processes
        expected = prdc.compute_prdc(real.numpy(), generated.numpy(), nearest_k=4)
    values = manifold_metrics(generated, real, neighbors=4, density_neighbors=4)
    for name, value in expected.items():
        assert value > 0
        # prdc asks for `<` in precision and recall, which only matters on a ball's surface.
        assert getattr(values, name) == pytest.approx(value, abs=1e-6), name


def test_kid_of_equal_distributions_is_zero_on_average() -> None:
    def law(seed: int) -> Tensor:
        return torch.randn(60, 8, generator=torch.Generator().manual_seed(seed))

    estimates = [
        kernel_distance(law(seed), law(seed + 500), num_subsets=1, subset_size=60).mean
        for seed in range(200)
    ]
    error = np.std(estimates, ddof=1) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates)) < 3 * error
    # The biased estimate keeps both diagonals, where the kernel is E (|x|² / 8 + 1)³ > 8.
    assert 10 * error < 2 * (8 - 2) / 60

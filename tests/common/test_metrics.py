import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from torch import Tensor

from common.metrics import (
    FeatureStats,
    MomentAccumulator,
    binomial_error,
    bootstrap_error,
    feature_stats,
    frechet_distance,
    inception_score,
    kernel_distance,
    manifold_metrics,
    psnr,
    save_metrics,
    ssim,
)


def normal(count: int, dim: int, *, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator) / math.sqrt(dim)
    return torch.randn(count, dim, generator=generator) @ mixing + shift


def random_images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def test_psnr_is_the_mean_error_of_each_image_in_decibels() -> None:
    images = torch.full((3, 3, 4, 4), 100, dtype=torch.uint8)
    others = images.clone()
    others[1] += 1  # MSE 1
    others[2] -= 5  # MSE 25
    expected = [100.0, 20 * math.log10(255), 20 * math.log10(255 / 5)]
    torch.testing.assert_close(psnr(images, others), torch.tensor(expected, dtype=torch.float64))


def test_ssim_of_constant_images_is_its_luminance_term() -> None:
    a = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
    b = torch.full((1, 3, 16, 16), 150, dtype=torch.uint8)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    assert ssim(a, b).item() == pytest.approx(expected, rel=1e-9)
    assert ssim(a, a).item() == pytest.approx(1.0, abs=1e-12)


def test_ssim_agrees_with_scipy_filters() -> None:
    a, b = random_images(2, 3, 20, 24, seed=1), random_images(2, 3, 20, 24, seed=2)
    b[0] = (a[0].float() * 0.7 + 20).to(torch.uint8)

    def blur(x: np.ndarray) -> np.ndarray:
        return scipy.ndimage.gaussian_filter(x, 1.5, radius=5)[5:-5, 5:-5]

    for index in range(2):
        values = []
        for channel in range(3):
            x, y = (v[index, channel].double().numpy() for v in (a, b))
            mx, my = blur(x), blur(y)
            vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
            c1, c2 = 6.5025, 58.5225
            top, bottom = (2 * mx * my + c1) * (2 * cov + c2), (mx**2 + my**2 + c1) * (vx + vy + c2)
            values.append((top / bottom).mean())
        assert ssim(a, b)[index].item() == pytest.approx(np.mean(values), rel=1e-9)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_pixel_metrics_refuse_floats_and_other_shapes(
    metric: Callable[[Tensor, Tensor], Tensor],
) -> None:
    images = random_images(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"uint8 .*float32"):
        metric(images.float(), images)
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 16\) and \(1, 3, 16, 16\)"):
        metric(images, images[:1])


def test_ssim_refuses_images_below_its_window() -> None:
    with pytest.raises(ValueError, match=r"11 pixels, got \(8, 8\)"):
        ssim(random_images(1, 3, 8, 8), random_images(1, 3, 8, 8))


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
    monkeypatch.setattr("common.metrics.CHUNK", 32)
    assert manifold_metrics(generated, real) == whole


def test_manifold_metrics_need_more_images_than_neighbours() -> None:
    with pytest.raises(ValueError, match="at least 6 images, got 5 generated and 30"):
        manifold_metrics(normal(5, 4, seed=0), normal(30, 4, seed=1))


def test_bootstrap_error_matches_repeated_sampling() -> None:
    reference = feature_stats(normal(5000, 4, seed=11))
    draws = normal(5000 * 5, 4, seed=11)[5000:] + 0.3
    spread = np.std(
        [frechet_distance(feature_stats(part), reference) for part in draws.split(400)], ddof=1
    )
    error = bootstrap_error(draws[:400], reference, num_resamples=200)
    assert error == pytest.approx(spread, rel=0.4)


def test_binomial_error() -> None:
    assert binomial_error(0.5, 100) == pytest.approx(0.05)


def test_save_metrics_refuses_nan_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.json"
    save_metrics({"psnr": 30.5}, path)
    with pytest.raises(ValueError, match="JSON"):
        save_metrics({"psnr": math.nan}, path)
    assert json.loads(path.read_text()) == {"psnr": 30.5}
    assert [item.name for item in path.parent.iterdir()] == ["metrics.json"]

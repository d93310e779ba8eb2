import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from lambda24.common.metrics.pairs import (
    check_ms_ssim,
    library_versions,
    ms_ssim,
    psnr,
    save_metrics,
    ssim,
)


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


def blur(x: np.ndarray) -> np.ndarray:
    return scipy.ndimage.gaussian_filter(x, 1.5, radius=5)[5:-5, 5:-5]


def test_ssim_agrees_with_scipy_filters() -> None:
    a, b = random_images(2, 3, 20, 24, seed=1), random_images(2, 3, 20, 24, seed=2)
    b[0] = (a[0].float() * 0.7 + 20).to(torch.uint8)
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


def test_save_metrics_refuses_nan_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.json"
    save_metrics({"psnr": 30.5}, path)
    with pytest.raises(ValueError, match="JSON"):
        save_metrics({"psnr": math.nan}, path)
    assert json.loads(path.read_text()) == {"psnr": 30.5}
    assert [item.name for item in path.parent.iterdir()] == ["metrics.json"]


def test_ms_ssim_is_the_product_over_five_scales() -> None:
    pytest.importorskip("pytorch_msssim")
    a = random_images(2, 3, 11, 11, seed=1).repeat_interleave(16, 2).repeat_interleave(16, 3)
    b = a.clone()
    b[0] = (a[0].float() * 0.7 + 30).to(torch.uint8)
    b[1] = (a[1].float() + random_images(3, 176, 176, seed=2) / 12).clamp(0, 255).to(torch.uint8)
    weights, c1, c2 = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333), 6.5025, 58.5225
    for index in range(2):
        channels = []
        for channel in range(3):
            x, y = (v[index, channel].double().numpy() for v in (a, b))
            product = 1.0
            for scale, weight in enumerate(weights):
                mx, my = blur(x), blur(y)
                vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
                value = (2 * cov + c2) / (vx + vy + c2)
                if scale == 4:  # luminance counts at the coarsest scale only
                    value = value * (2 * mx * my + c1) / (mx**2 + my**2 + c1)
                product *= max(value.mean(), 0) ** weight
                x, y = (v[: len(v) // 2 * 2, : len(v) // 2 * 2] for v in (x, y))
                x, y = (v.reshape(len(v) // 2, 2, -1, 2).mean(axis=(1, 3)) for v in (x, y))
            channels.append(product)
        # pytorch-msssim keeps its window in float32.
        assert ms_ssim(a, b)[index].item() == pytest.approx(np.mean(channels), rel=1e-5)
    assert ms_ssim(a, a).tolist() == pytest.approx([1, 1])


def test_ms_ssim_refuses_small_images_and_names_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match=r"161 pixels, got \(160, 200\)"):
        ms_ssim(random_images(1, 3, 160, 200), random_images(1, 3, 160, 200))
    monkeypatch.setitem(sys.modules, "pytorch_msssim", None)
    with pytest.raises(ValueError, match=r'pip install "lambda24\[perceptual\]"'):
        check_ms_ssim()


def test_versions_leave_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    def version(name: str) -> str:
        if name == "lpips":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("lambda24.common.metrics.pairs.version", version)
    assert library_versions()["torch"] == "1.0"
    assert "lpips" not in library_versions()

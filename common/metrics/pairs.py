"""Image quality of pairs of images (PSNR, SSIM, MS-SSIM), and how metrics are written down.

Distances between sets of images are in `distances`, perceptual ones in `perceptual`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lambda24.common.files import replace_text

MAX_PSNR = 100.0  # of identical images, where the definition gives infinity
MS_SSIM_SIDE = 161  # the least side for which the window fits into all five scales


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


def ms_ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Multi-scale SSIM of each pair of uint8 images `(N, 3, H, W)`, `(N,)` float64.

    Wang, Simoncelli & Bovik 2003 as pytorch-msssim computes it: five scales with the weights of the
    paper, range 255, mean over RGB. Smaller images would need fewer scales or another window, which
    is another metric.

    Raises:
        ValueError: images below 161 pixels, or the package is missing.
    """
    _check_pairs(images, reference)
    if min(images.shape[-2:]) < MS_SSIM_SIDE:
        raise ValueError(
            f"MS-SSIM needs images of at least {MS_SSIM_SIDE} pixels, "
            f"got {tuple(images.shape[-2:])}"
        )
    similarity: Tensor = _pytorch_msssim().ms_ssim(
        images.double(), reference.double(), data_range=255, size_average=False
    )
    return similarity


def check_ms_ssim() -> None:
    """Raises ValueError with the command that installs pytorch-msssim where it is missing."""
    _pytorch_msssim()


def _pytorch_msssim() -> Any:
    try:
        import pytorch_msssim
    except ImportError as error:
        raise ValueError(
            'MS-SSIM needs: pip install "lambda24[perceptual]" (package pytorch-msssim)'
        ) from error
    return pytorch_msssim


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


def library_versions() -> dict[str, str]:
    """Versions of the installed packages that a metric can depend on, for protocols."""
    names = ("torch", "torch-fidelity", "timm", "transformers", "numpy", "lpips", "pytorch-msssim")
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # an optional one
            continue
    return versions


def save_metrics(metrics: Mapping[str, Any], path: str | Path) -> None:
    """Writes metrics as JSON under a temporary name and renames it; makes parent folders."""
    replace_text(path, json.dumps(metrics, indent=2, allow_nan=False) + "\n")

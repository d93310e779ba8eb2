"""DiffAugment (arXiv 2006.10738): differentiable augmentation of what a discriminator sees.

The draws come from the samples' keys, so they are the same however a batch is spread or resumed.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lambda24.common.config import config_class
from lambda24.common.data.batches import uniform_from_keys


@config_class
class DiffAugmentConfig:
    """Args:
    color: random brightness, saturation and contrast.
    translation: largest shift as a fraction of the side, filled with zeros; 0 shifts nothing.
    cutout: side of a square of zeros as a fraction of the image's; 0 cuts nothing.
    """

    color: bool = True
    translation: Annotated[float, Field(ge=0, lt=1)] = 0.125
    cutout: Annotated[float, Field(ge=0, lt=1)] = 0.5


def diff_augment(images: Tensor, keys: Tensor, stream: int, config: DiffAugmentConfig) -> Tensor:
    """Augments images (B, 3, H, W) in [-1, 1] by the stream `stream` of their keys (B,)."""
    draws = uniform_from_keys(keys, stream, (7,))  # (B, 7)
    if config.color:
        images = _color(images, draws[:, :3, None, None, None])
    if config.translation:
        images = _translate(images, draws[:, 3:5], config.translation)
    if config.cutout:
        images = images * _cutout_mask(images, draws[:, 5:7], config.cutout)
    return images


def _color(images: Tensor, draws: Tensor) -> Tensor:
    brightness, saturation, contrast = draws.unbind(1)  # each (B, 1, 1, 1)
    images = images + (brightness - 0.5)
    gray = images.mean(dim=1, keepdim=True)
    images = (images - gray) * (2 * saturation) + gray
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def _translate(images: Tensor, draws: Tensor, ratio: float) -> Tensor:
    height, width = images.shape[2:]
    down, right = round(ratio * height), round(ratio * width)
    padded = F.pad(images, (right, right, down, down))
    top = (draws[:, :1] * (2 * down + 1)).long()  # (B, 1); `down` is no shift
    left = (draws[:, 1:] * (2 * right + 1)).long()
    rows = top + torch.arange(height, device=images.device)  # (B, H)
    columns = left + torch.arange(width, device=images.device)  # (B, W)
    sample = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _cutout_mask(images: Tensor, draws: Tensor, ratio: float) -> Tensor:
    """(B, 1, H, W), zero in a square whose centre is anywhere in the image."""
    inside = []
    for axis, side in enumerate(images.shape[2:]):
        length = round(ratio * side)
        first = (draws[:, axis : axis + 1] * (side + 1 - length % 2)).long() - length // 2  # (B, 1)
        place = torch.arange(side, device=images.device)
        inside.append((place >= first) & (place < first + length))  # (B, side)
    return (~(inside[0][:, :, None] & inside[1][:, None, :])).to(images.dtype)[:, None]

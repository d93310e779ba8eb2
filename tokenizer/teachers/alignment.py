"""Alignment of a latent with a vision foundation model: the VF loss of VA-VAE (arXiv 2501.01423).

The Leech paper (arXiv 2512.14697) takes this loss with DINOv2 features, and its code has no trace
of it. What it leaves unknown, and what is chosen here:
- The latent: before or after quantization? Here the encoder's output, before both.
- Which DINOv2 and which resolution? VA-VAE's DINOv2-L at 224 pixels; any size can be set.
- Weights and margins? VA-VAE's: both terms 1, together 0.1 times the ratio of gradients at the
  encoder's last weight; margins 0.5 (cosine) and 0.25 (distance).
- Grids that differ (VA-VAE's always agree)? The teacher's features are averaged over the area of
  each latent position where the latent is coarser: all of them count, once. Where it is finer they
  are interpolated bilinearly: an average would repeat each, as steps the latent would have to copy.
Beside the paper, VA-VAE's code feeds DINOv2 images in [-1, 1]; here they are normalised as DINOv2
was trained. Its three-stage schedule (100 epochs of weight 0.5 without margins, 15 of 0.1, 15 with
margins) is a matter of three runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from lambda24.common.config import config_class
from lambda24.tokenizer.teachers.cache import CachedTeacher
from lambda24.tokenizer.teachers.networks import (
    EfficientNetLite0Teacher,
    Teacher,
    TeacherConfig,
    build_teacher,
)

EPSILON = 1e-6  # below this norm a vector has no direction, and no gradient that explodes


@config_class
class AlignmentConfig:
    """The VF loss of a run.

    Args:
        teacher: whose features.
        weight: of the sum of both terms.
        adaptive: multiply `weight` by the ratio of the gradient norms of reconstruction and
            alignment at the encoder's last weight.
        cosine_margin: cosines above 1 - margin cost nothing.
        distance_margin: differences of two similarities below it cost nothing.
        distance_on: whose similarities are compared with the teacher's. VA-VAE's equation has the
            latent itself, its code the latent's projection, which is the default.
        cache: folder for the teacher's features; None computes them anew. For data without
            augmentation, or with flips alone.
        cache_gib: largest size of the cache.
    """

    teacher: TeacherConfig = EfficientNetLite0Teacher()
    weight: Annotated[float, Field(gt=0)] = 0.1
    adaptive: bool = True
    cosine_margin: Annotated[float, Field(ge=0, lt=2)] = 0.5
    distance_margin: Annotated[float, Field(ge=0, lt=2)] = 0.25
    distance_on: Literal["projection", "latent"] = "projection"
    cache: str | None = None
    cache_gib: Annotated[float, Field(gt=0)] = 8.0


class VFAlignment(nn.Module):
    """Both terms of the VF loss, with their trained projection to the teacher's channels.

    The teacher follows `.to(device)`, but is no part of `parameters()`, `state_dict()` or DDP.

    Args:
        config: the loss.
        latent_channels: C of the latents.

    Raises:
        ValueError: a teacher that cannot be loaded.
    """

    teacher: Teacher | CachedTeacher

    def __init__(self, config: AlignmentConfig, latent_channels: int) -> None:
        super().__init__()
        self.config = config
        teacher: Teacher | CachedTeacher = build_teacher(config.teacher)
        channels, _, _ = teacher.output_shape()
        if config.cache is not None and isinstance(teacher, Teacher):
            teacher = CachedTeacher(teacher, Path(config.cache), max_gib=config.cache_gib)
        object.__setattr__(self, "teacher", teacher)  # not as a submodule: see above
        self.projection = nn.Conv2d(latent_channels, channels, 1, bias=False)

    def forward(self, latent: Tensor, images: Tensor) -> dict[str, Tensor]:
        """The unweighted terms "vf_cosine" and "vf_distance", means over the batch.

        Args:
            latent: (B, C, S, S) before quantization.
            images: (B, 3, H, W) in [-1, 1], what the latent is of.
        """
        channels = self.projection.in_channels
        if latent.ndim != 4 or latent.shape[1] != channels or len(latent) != len(images):
            raise ValueError(
                f"latent must be (B, {channels}, S, S) of the B images, got "
                f"{tuple(latent.shape)} and {len(images)} images"
            )
        features = self.teacher(images)
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.to(self.projection.weight.dtype)
            features = resize_features(features, latent.shape[-2:]).to(latent.dtype)
            projected = self.projection(latent)  # (B, F, S, S)
            compared = projected if self.config.distance_on == "projection" else latent
            return {
                "vf_cosine": cosine_term(projected, features, self.config.cosine_margin),
                "vf_distance": distance_term(compared, features, self.config.distance_margin),
            }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VFAlignment:
        super()._apply(fn, recurse)
        self.teacher.to(self.projection.weight.device)  # the device only: its dtype is its own
        return self


def cosine_term(projected: Tensor, features: Tensor, margin: float) -> Tensor:
    """Mean over images and positions of relu(1 - margin - cos(z'_ij, f_ij)).

    VA-VAE's marginal cosine similarity loss.

    Args:
        projected: (B, F, S, S) projection of the latent.
        features: (B, F, S, S) of the teacher.
        margin: see `AlignmentConfig`.
    """
    cosine = (_unit(projected) * _unit(features)).sum(dim=1)  # (B, S, S)
    return F.relu(1 - margin - cosine).mean()


def distance_term(latent: Tensor, features: Tensor, margin: float) -> Tensor:
    """Mean of relu(|cos(z_i, z_j) - cos(f_i, f_j)| - margin) over pairs (i, j).

    VA-VAE's marginal distance matrix similarity loss. All N^2 pairs of the N = S^2 positions of an
    image count, i = j too, and all images alike. The channels of both sides need not agree.

    Args:
        latent: (B, C, S, S).
        features: (B, F, S, S) of the teacher.
        margin: see `AlignmentConfig`.
    """
    difference = _similarities(latent) - _similarities(features)  # (B, N, N)
    return F.relu(difference.abs() - margin).mean()


def resize_features(features: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Features (B, F, h, w) on the latent's grid: area mean down, bilinear up; why: see above."""
    target = (size[0], size[1])
    if features.shape[-2:] == target:
        return features
    if features.shape[-2] >= target[0] and features.shape[-1] >= target[1]:
        return F.interpolate(features, size=target, mode="area")
    return F.interpolate(features, size=target, mode="bilinear")


def _similarities(maps: Tensor) -> Tensor:
    vectors = rearrange(_unit(maps), "b c h w -> b (h w) c")
    return vectors @ vectors.mT


def _unit(maps: Tensor) -> Tensor:
    return F.normalize(maps, dim=1, eps=EPSILON)

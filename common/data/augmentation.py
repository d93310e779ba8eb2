"""Small random moves and bends of training images; every choice comes from the sample's key.

An image's result does not depend on its batch: nothing here sums over images.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor

from lambda24.common.config import config_class
from lambda24.common.data.batches import uniform_from_keys

AFFINE_STREAM, BEND_STREAM, CHOICE_STREAM = -5, -6, -7


@config_class
class AugmentConfig:
    """How far training images are moved; each strength is drawn evenly from both directions.

    Args:
        probability: share of the images that are moved; the others stay as they are.
        rotation: up to so many degrees.
        shift: up to this part of the image's side, down and to the right each.
        scale: sizes from 1 / (1 + scale) to 1 + scale, evenly in their logarithm.
        shear: up to this tangent, sideways.
        elastic: displacement of each control point of a smooth bend, up to this part of the side.
        elastic_cells: cells a side of the bend's control grid: more make it finer.
    """

    probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    shift: Annotated[float, Field(ge=0, le=1)] = 0.0
    scale: Annotated[float, Field(ge=0, le=9)] = 0.0
    shear: Annotated[float, Field(ge=0, le=1)] = 0.0
    elastic: Annotated[float, Field(ge=0, le=1)] = 0.0
    elastic_cells: Annotated[int, Field(ge=1)] = 3


def augment(images: Tensor, keys: Tensor, config: AugmentConfig) -> Tensor:
    """Images, each moved and bent, or left alone, as its key says.

    With positions in [-1, 1] from the middle, x to the right and y down, the pixel at p takes the
    value at M (p - t) + d(p): the inverse M turns, then scales, then shears, t shifts, and d is the
    bend. Values between pixels are bilinear, beyond the edge those of the edge.

    Args:
        images: `(B, 3, S, S)` uint8.
        keys: `(B,)` int64.

    Returns:
        `(B, 3, S, S)` uint8, rounded half up.
    """
    places = source_places(keys, images.shape[-1], config)
    moved = F.grid_sample(images.float(), places, padding_mode="border", align_corners=False)
    rounded = (moved + 0.5).floor().clamp(0, 255).to(torch.uint8)
    chosen = uniform_from_keys(keys, CHOICE_STREAM) < config.probability
    return torch.where(chosen[:, None, None, None], rounded, images)


def source_places(keys: Tensor, side: int, config: AugmentConfig) -> Tensor:
    """Where each pixel's value is taken: `(B, side, side, 2)` fp32, (x, y) in [-1, 1]."""
    matrices, shifts = _affine(keys, config)  # (B, 2, 2), (B, 2)
    centres = (torch.arange(side) + 0.5) * (2 / side) - 1
    x = centres - shifts[:, 0, None, None]  # (B, 1, S)
    y = centres[:, None] - shifts[:, 1, None, None]  # (B, S, 1)
    entries = rearrange(matrices, "b i j -> i j b 1 1")
    places = torch.stack([row[0] * x + row[1] * y for row in entries], dim=-1)  # (B, S, S, 2)
    return places + bends(keys, side, config) if config.elastic else places


def bends(keys: Tensor, side: int, config: AugmentConfig) -> Tensor:
    """Displacements `(B, side, side, 2)` fp32 of uniform cubic B-splines.

    Free-form deformation (Rueckert et al. 1999). The basis sums to one, so that no displacement
    exceeds those of the control points.
    """
    basis = _spline_basis(side, config.elastic_cells)  # (S, P)
    count = basis.shape[1]
    draws = uniform_from_keys(keys, BEND_STREAM, (count, count, 2))
    points = (2 * draws - 1) * (2 * config.elastic)  # a side is 2 long
    # Sums of products, term by term: a matrix product may round otherwise in another batch.
    rows = torch.zeros(len(keys), side, count, 2)
    for number in range(count):
        rows += basis[:, number, None, None] * points[:, None, number]
    field = torch.zeros(len(keys), side, side, 2)
    for number in range(count):
        field += basis[:, number, None] * rows[:, :, None, number]
    return field


def _affine(keys: Tensor, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """M `(B, 2, 2)` and t `(B, 2)` fp32; by scalar functions, as vectors' may round otherwise."""
    matrices, shifts = [], []
    for draws in (2 * uniform_from_keys(keys, AFFINE_STREAM, (5,)).double() - 1).tolist():
        turn, size, slant, right, down = draws
        angle = math.radians(config.rotation * turn)
        zoom = (1 + config.scale) ** -size
        tangent = config.shear * slant
        cosine, sine = zoom * math.cos(angle), zoom * math.sin(angle)
        matrices.append([[cosine + tangent * sine, tangent * cosine - sine], [sine, cosine]])
        shifts.append([2 * config.shift * right, 2 * config.shift * down])
    return torch.tensor(matrices).reshape(-1, 2, 2), torch.tensor(shifts).reshape(-1, 2)


def _spline_basis(side: int, cells: int) -> Tensor:
    """`(side, cells + 3)` fp32: weight of each control point at each pixel's centre."""
    place = (np.arange(side) + 0.5) * cells / side
    distance = np.abs(place[:, None] - np.arange(-1, cells + 2))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clip(0) ** 3 / 6
    return torch.from_numpy(np.where(distance < 1, near, far)).float()

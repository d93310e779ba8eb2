"""Geometry of a spherical code: how far apart its points are, how well they cover the sphere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lambda24.tokenizer.lattices.codes import SphericalCode

_SAME = 1e-5  # products this close are one distance; float32 rounding is below 1e-6
_SCORES_AT_ONCE = 2**24


@dataclass(frozen=True)
class CodeGeometry:
    """What `code_geometry` measures.

    Args:
        name: the code's name.
        dim: dimensions of the space.
        size: number of points.
        bits_per_dimension: log2(size) / dim.
        rows_checked: points whose distances to all others were computed; with fewer than `size`,
            the next two are an upper and a lower bound for codes without symmetry.
        minimum_chord: smallest distance between two points.
        kissing_number: most points at that distance from one point.
        num_samples: uniform points of the sphere behind the next three numbers.
        mean_cosine: mean cosine between a uniform point and its nearest code.
        worst_cosine: smallest such cosine seen (an upper bound of the covering radius' cosine).
        mse: mean squared distance to the nearest code, 2 - 2 `mean_cosine`.
    """

    name: str
    dim: int
    size: int
    bits_per_dimension: float
    rows_checked: int
    minimum_chord: float
    kissing_number: int
    num_samples: int
    mean_cosine: float
    worst_cosine: float
    mse: float


def _largest_products(rows: Tensor, own: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Per row: largest product with another code, and how many codes have it."""
    best = torch.full((len(rows),), -torch.inf)
    count = torch.zeros(len(rows), dtype=torch.int64)
    per_tile = max(1, _SCORES_AT_ONCE // max(1, len(rows)))
    for start in range(0, len(table), per_tile):
        products = rows @ table[start : start + per_tile].T
        inside = (own >= start) & (own < start + products.shape[1])
        products[inside.nonzero()[:, 0], own[inside] - start] = -torch.inf
        top = products.amax(1)
        here = (products > top[:, None] - _SAME).sum(1)
        count = torch.where(top > best + _SAME, here, count + here * (top > best - _SAME))
        best = torch.maximum(best, top)
    return best, count


@torch.no_grad()
def code_geometry(
    code: SphericalCode, *, num_samples: int = 8192, num_rows: int = 2048, seed: int = 0
) -> CodeGeometry:
    """Measures a code of at least two points.

    Args:
        code: any spherical code.
        num_samples: uniform points on the sphere to quantize.
        num_rows: points to compare with all others (all points if there are fewer).
        seed: draw of both.

    Raises:
        ValueError: a code of one point, or numbers below 1.
    """
    if code.size < 2 or num_samples < 1 or num_rows < 1:
        raise ValueError(
            f"size must be at least 2, num_samples and num_rows positive, "
            f"got {code.size}, {num_samples} and {num_rows}"
        )
    generator = torch.Generator().manual_seed(seed)
    table = code.table()
    own = torch.randperm(code.size, generator=generator)[:num_rows]
    parts = [_largest_products(table[rows], rows, table) for rows in own.split(1024)]
    best, count = (torch.cat(column) for column in zip(*parts, strict=True))
    largest = best.max()
    kissing = int(count[best > largest - _SAME].max())

    samples = torch.randn(num_samples, code.dim, generator=generator)
    samples /= samples.norm(dim=1, keepdim=True)
    cosines = (samples * code.vectors(code.nearest(samples))).double().sum(1)
    mean = float(cosines.mean())
    return CodeGeometry(
        name=code.name,
        dim=code.dim,
        size=code.size,
        bits_per_dimension=math.log2(code.size) / code.dim,
        rows_checked=len(own),
        minimum_chord=math.sqrt(max(0.0, 2 - 2 * float(largest))),
        kissing_number=kissing,
        num_samples=num_samples,
        mean_cosine=mean,
        worst_cosine=float(cosines.min()),
        mse=2 - 2 * mean,
    )

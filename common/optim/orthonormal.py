"""Orthonormal bases of the columns of a tall matrix whose rows may lie on several processes.

The sign of a basis vector is arbitrary: it cancels where a basis is used as a projection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Orthonormalization = Literal["auto", "qr", "rcqr"]

SKETCH_FACTOR, SKETCH_MULTIPLE = 1.25, 128  # rows of a sketch a column; of which a multiple is made


@dataclass(frozen=True)
class Rows:
    """The rows [start, start + count) of `total` that this process holds.

    Args:
        group: who holds the others, `most` rows at most; None: all are here.
    """

    start: int
    count: int
    total: int
    most: int
    group: dist.ProcessGroup | None = None

    @classmethod
    def all(cls, total: int) -> Rows:
        return cls(0, total, total, total)

    def sum(self, x: Tensor) -> Tensor:
        """Sum of everybody's `x`, which may be overwritten."""
        if self.group is not None:
            x = x.contiguous()
            dist.all_reduce(x, group=self.group)
        return x

    def gather(self, x: Tensor) -> tuple[Tensor, int]:
        """Everybody's `x` of one shape on top of each other, and where our own begins."""
        if self.group is None:
            return x, 0
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts), dist.get_rank(self.group) * len(x)


def orthonormal_columns(
    matrix: Tensor, rows: Rows, generator: torch.Generator, method: Orthonormalization = "auto"
) -> Tensor:
    """Our rows of an orthonormal basis of the columns of the whole matrix.

    Args:
        matrix: `(rows.count, r)`, our rows of a matrix `(rows.total, r)`.
        generator: of the sketch of "rcqr"; in the same state on all processes.
        method: "qr" is Householder's; "rcqr" a triangle from a Gaussian sketch and one Cholesky
            pass, faster on a GPU; "auto" chooses by device. A matrix that is not taller than wide,
            and one whose columns are dependent, always get "qr".
    """
    if method == "auto":
        method = "rcqr" if matrix.device.type == "cuda" else "qr"
    if method == "rcqr" and rows.total > matrix.shape[1]:
        basis = _sketched(matrix, rows, generator)
        if basis is not None:
            return basis
    return _householder(matrix, rows)


def _householder(matrix: Tensor, rows: Rows) -> Tensor:
    """QR; over several processes the QR of the stacked triangles of everybody's rows."""
    basis, triangle = torch.linalg.qr(matrix)
    if rows.group is None:
        return basis
    height = min(rows.most, matrix.shape[1])
    padded = matrix.new_zeros(height, matrix.shape[1])
    padded[: len(triangle)] = triangle
    stacked, first = rows.gather(padded)
    return basis @ torch.linalg.qr(stacked).Q[first : first + len(triangle)]


def _sketched(matrix: Tensor, rows: Rows, generator: torch.Generator) -> Tensor | None:
    """Randomised Cholesky QR; None when the columns are dependent."""
    width = matrix.shape[1]
    height = SKETCH_MULTIPLE * math.ceil(SKETCH_FACTOR * width / SKETCH_MULTIPLE)
    sketch = torch.randn(
        height, rows.total, generator=generator, device=matrix.device, dtype=matrix.dtype
    )
    sketch = sketch[:, rows.start : rows.start + rows.count] / math.sqrt(height)
    triangle = torch.linalg.qr(rows.sum(sketch @ matrix), mode="r").R
    basis = torch.linalg.solve_triangular(triangle, matrix, upper=True, left=False)
    factor, info = torch.linalg.cholesky_ex(rows.sum(basis.T @ basis), upper=True)
    # Sums are equal on all processes, so all decide alike.
    if int(info) or not bool(torch.isfinite(factor).all()):
        return None
    return torch.linalg.solve_triangular(factor, basis, upper=True, left=False)

"""Fixed spherical codes behind one small interface, by name.

A code is a finite set of unit vectors with an exact nearest-code search. Structured codes search without
a table; explicit tables are searched by `nearest_rows`, one chunked float32 product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from tokenizer.lattices import leech

CODE_NAMES = ("leech",)


class SphericalCode(ABC):
    """`size` unit vectors in `dim` dimensions; holds no tensors on an accelerator."""

    name: str
    dim: int
    size: int

    @abstractmethod
    def nearest(self, z: Tensor) -> Tensor:
        """Indices `(...)` int64 of the codes with the largest inner product with `z` `(..., dim)`."""

    @abstractmethod
    def vectors(self, indices: Tensor) -> Tensor:
        """Unit vectors `(..., dim)` float32 of indices `(...)`."""


class LeechCode(SphericalCode):
    """All 196,560 minimal vectors of the Leech lattice, in canonical order."""

    def __init__(self) -> None:
        self.name, self.dim, self.size = "leech", leech.DIM, leech.NUM_CODES

    def nearest(self, z: Tensor) -> Tensor:
        return leech.nearest(z)

    def vectors(self, indices: Tensor) -> Tensor:
        return leech.unrank(indices) / leech.SQUARED_NORM**0.5


def build_code(name: str, dim: int = 24, size: int | None = None, seed: int = 0) -> SphericalCode:
    """A spherical code by name.

    Raises:
        ValueError: an unknown name, or a dimension or size that the code does not have.
    """
    match name:
        case "leech":
            if dim != leech.DIM or size not in (None, leech.NUM_CODES):
                raise ValueError(
                    f"code leech has dim {leech.DIM} and size {leech.NUM_CODES}, got {dim} and {size}"
                )
            return LeechCode()
        case _:
            raise ValueError(f"code name must be one of {CODE_NAMES}, got {name!r}")

"""Fixed spherical codes behind one small interface, by name.

A code is a finite set of unit vectors with an exact nearest-code search. The Leech lattice's codes
search by structure; the others are explicit tables, searched by `nearest_rows`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from lambda24.tokenizer.lattices import leech, released, shells, spheres
from lambda24.tokenizer.lattices.search.nearest import GROUPS_OF_TYPE, search

CODE_NAMES = (
    "leech",
    "leech_type2",
    "leech_type3",
    "leech_type4",
    "leech_subset",
    "slq_released",
    *shells.SHELLS,
    "random",
    "fibonacci",
)


@torch.no_grad()
def nearest_rows(z: Tensor, table: Tensor, *, rows: int = 256, codes: int = 4096) -> Tensor:
    """Rows `(...)` int64 of `table` `(K, d)` with the largest inner product with `z` `(..., d)`.

    In float32 (float64 if either is), outside autocast, in tiles of `rows` vectors by `codes`
    codes; ties go to the lowest row.

    Raises:
        ValueError: shapes that do not fit, or values of `z` that are not finite.
    """
    if z.ndim == 0 or z.shape[-1] != table.shape[1]:
        raise ValueError(f"z must be (..., {table.shape[1]}), got {tuple(z.shape)}")
    dtype = torch.promote_types(torch.promote_types(z.dtype, table.dtype), torch.float32)
    flat = z.detach().reshape(-1, z.shape[-1]).to(dtype)
    if not bool(flat.isfinite().all()):
        raise ValueError("z must be finite, got NaN or infinity")
    tiles = table.to(dtype).split(codes)
    best = flat.new_full((len(flat),), -torch.inf)
    indices = torch.zeros(len(flat), dtype=torch.int64, device=z.device)
    with torch.autocast(z.device.type, enabled=False):
        for start in range(0, len(flat), rows):
            part = slice(start, start + rows)
            for number, tile in enumerate(tiles):
                score, index = (flat[part] @ tile.T).max(1)
                better = score > best[part]
                best[part] = torch.where(better, score, best[part])
                indices[part] = torch.where(better, index + number * codes, indices[part])
    return indices.view(z.shape[:-1])


class SphericalCode(ABC):
    """`size` unit vectors in `dim` dimensions. Copies of its table follow the inputs' device."""

    def __init__(self, name: str, dim: int, size: int) -> None:
        self.name, self.dim, self.size = name, dim, size
        self._tables: dict[torch.device, Tensor] = {}

    @abstractmethod
    def _table(self) -> Tensor:
        """The unit vectors `(size, dim)` float32, on the CPU."""

    def table(self, device: torch.device | str = "cpu") -> Tensor:
        """The unit vectors `(size, dim)` float32; shared, not to be written to."""
        device = torch.device(device)
        if device not in self._tables:
            self._tables[device] = self._table().to(device)
        return self._tables[device]

    def vectors(self, indices: Tensor) -> Tensor:
        """Unit vectors `(..., dim)` float32 of indices `(...)`.

        Raises:
            IndexError: an index outside [0, size), on a CPU.
        """
        return self.table(indices.device)[indices]

    @abstractmethod
    def nearest(self, z: Tensor) -> Tensor:
        """Indices `(...)` int64 of the codes with the largest inner product with `z` `(..., dim)`.

        Raises:
            ValueError: a last dimension other than `dim`, or values that are not finite.
        """


class TableCode(SphericalCode):
    """Any list of unit vectors."""

    def __init__(self, name: str, vectors: Tensor) -> None:
        super().__init__(name, vectors.shape[1], vectors.shape[0])
        self._vectors = vectors

    def _table(self) -> Tensor:
        return self._vectors

    def nearest(self, z: Tensor) -> Tensor:
        return nearest_rows(z, self.table(z.device))


class LeechCode(SphericalCode):
    """The minimal vectors of the Leech lattice, all of them or those of one shape (2, 3 or 4)."""

    def __init__(self, shape: int | None = None) -> None:
        self.start, stop = leech.TYPE_RANGES[shape] if shape else (0, leech.NUM_CODES)
        self.shape = shape
        super().__init__(f"leech_type{shape}" if shape else "leech", leech.DIM, stop - self.start)

    def _table(self) -> Tensor:
        return leech.codebook(torch.float32)[self.start : self.start + self.size].clone()

    def nearest(self, z: Tensor) -> Tensor:
        if self.shape is None:
            return leech.nearest(z)
        flat = leech.prepare_vectors(z)
        return (search(flat, flat, GROUPS_OF_TYPE[self.shape]) - self.start).view(z.shape[:-1])


class ReleasedCode(SphericalCode):
    """The codebook of the released checkpoints, see `released`."""

    def __init__(self) -> None:
        super().__init__("slq_released", leech.DIM, leech.NUM_CODES)

    def _table(self) -> Tensor:
        return released.codebook(torch.float32)

    def nearest(self, z: Tensor) -> Tensor:
        return released.nearest(z)


def _leech_subset(size: int, seed: int) -> Tensor:
    if not 1 <= size <= leech.NUM_CODES:
        raise ValueError(f"size of leech_subset must lie in [1, {leech.NUM_CODES}], got {size}")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(leech.NUM_CODES, generator=generator)[:size].sort().values
    return leech.unrank(rows).float() / leech.SQUARED_NORM**0.5


def build_code(
    name: str, dim: int | None = None, size: int | None = None, seed: int = 0
) -> SphericalCode:
    """A spherical code by name.

    Args:
        name: one of `CODE_NAMES`.
        dim: needed by random and fibonacci (24 if None); the others have one dimension.
        size: needed by random, fibonacci and leech_subset; the others have one size.
        seed: draw of random and leech_subset; part of the code's identity.

    Raises:
        ValueError: an unknown name, a missing size, or a dimension or size that the code has not.
    """
    free: dict[str, Callable[[int, int], Tensor]] = {
        "leech_subset": lambda dim, size: _leech_subset(size, seed),
        "random": lambda dim, size: spheres.random_sphere(dim, size, seed),
        "fibonacci": spheres.fibonacci_sphere,
    }
    code: SphericalCode
    match name:
        case "leech":
            code = LeechCode()
        case "leech_type2" | "leech_type3" | "leech_type4":
            code = LeechCode(int(name[-1]))
        case "slq_released":
            code = ReleasedCode()
        case "leech_subset" | "random" | "fibonacci":
            if size is None:
                raise ValueError(f"code {name} needs a size")
            code = TableCode(name, free[name](leech.DIM if dim is None else dim, size))
        case _ if name in shells.SHELLS:
            code = TableCode(name, shells.SHELLS[name]())
        case _:
            raise ValueError(f"code name must be one of {', '.join(CODE_NAMES)}, got {name!r}")
    if dim not in (None, code.dim) or size not in (None, code.size):
        raise ValueError(
            f"code {name} has dim {code.dim} and size {code.size}, got dim {dim} and size {size}"
        )
    return code

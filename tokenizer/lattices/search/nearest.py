"""Exact nearest minimal vector of the Leech lattice: a three-brick max-plus search.

The largest inner product over all codes is a (max, +) convolution over F2^3 of per-brick scores:
about 10,000 additions and maxima a vector instead of 196,560 dot products. `leech_tile` finds each
vector's group of codes and its labels; `traceback` then rebuilds the signs from the vector.
`leech_kernel` does the same, compiled, where numba is installed.
Only additions, maxima and copies of rows are used: neither autocast nor TF32 can change a result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from lambda24.tokenizer.lattices.search.tile import NUM_GROUPS, Tile
from lambda24.tokenizer.lattices.search.traceback import traceback

__all__ = ["GROUPS_OF_TYPE", "NUM_GROUPS", "Method", "has_kernel", "search"]

Method = Literal["eager", "kernel"]
GROUPS_OF_TYPE = {2: (0, 9), 3: (9, 17), 4: (17, 18)}
TILE_CPU, BLOCK_CPU = 768, 8192  # a tile's workspace is 9 MB
BLOCK_CUDA = 32768


class _Tiles(threading.local):
    """Each thread's workspace, kept between calls: its memory and the views of a few sizes."""

    def __init__(self) -> None:
        self.memory: dict[torch.dtype, Tensor] = {}
        self.tiles: dict[tuple[int, torch.dtype], Tile] = {}

    def tile(self, size: int, dtype: torch.dtype) -> Tile:
        key = (size, dtype)
        if key not in self.tiles:
            if len(self.tiles) >= 16:
                del self.tiles[next(iter(self.tiles))]
            # Tensors born in inference mode could not be written to outside of it.
            with torch.inference_mode(False):
                if dtype not in self.memory:
                    self.memory[dtype] = torch.empty(Tile.NUM_ROWS * TILE_CPU, dtype=dtype)
                memory = self.memory[dtype][: Tile.NUM_ROWS * size]
                self.tiles[key] = Tile(memory.view(-1, size))
        return self.tiles[key]


_tiles = _Tiles()


@lru_cache(maxsize=1)
def _kernel() -> Callable[[Tensor, Tensor, tuple[int, int]], Tensor] | None:
    try:
        from lambda24.tokenizer.lattices.search.kernel import search_compiled
    except (ImportError, RuntimeError):  # no numba, or no folder where it may keep its code
        return None
    return search_compiled


def has_kernel() -> bool:
    """Whether the compiled search can be used here: numba (extra `fast`) works."""
    return _kernel() is not None


def search(
    type2: Tensor,
    type3: Tensor,
    groups: tuple[int, int],
    chunk_size: int | None = None,
    method: Method | None = None,
) -> Tensor:
    """Canonical indices `(N,)` of the nearest codes among `groups`, lowest index on ties.

    Args:
        type2: `(N, 24)` float32 or float64, finite; scored against types 2 and 4.
        type3: the vectors as type 3 sees them (coordinates in another order, or the same tensor).
        groups: first and last + 1 of the groups that take part, see `GROUPS_OF_TYPE`.
        chunk_size: vectors in flight at once in the eager search; bounds the memory.
        method: None is the kernel for float32 on a CPU where it can be used, else eager.

    Raises:
        ValueError: the kernel is asked for and numba, a CPU or float32 is missing.
    """
    if method not in (None, "eager", "kernel"):
        raise ValueError(f"method must be eager, kernel or None, got {method!r}")
    fits = type2.device.type == "cpu" and type2.dtype == torch.float32
    kernel = _kernel() if fits and method != "eager" else None
    if kernel is not None:
        return kernel(type2, type3, groups)
    if method == "kernel":
        what = f"{type2.dtype} on {type2.device}, numba {'found' if has_kernel() else 'not found'}"
        raise ValueError(f"method kernel needs numba and float32 vectors on a CPU, got {what}")
    return _search_eagerly(type2, type3, groups, chunk_size)


def _search_eagerly(
    type2: Tensor, type3: Tensor, groups: tuple[int, int], chunk_size: int | None
) -> Tensor:
    count, device = len(type2), type2.device
    on_cpu = device.type == "cpu"
    block = min(chunk_size or (BLOCK_CPU if on_cpu else BLOCK_CUDA), count)
    indices = torch.empty(count, dtype=torch.int64, device=device)
    if count == 0:
        return indices
    num_tiles = -(-block // TILE_CPU) if on_cpu else 1
    size = -(-block // num_tiles)
    if on_cpu:
        tile = _tiles.tile(size, type2.dtype)
    else:
        tile = Tile(torch.empty(Tile.NUM_ROWS, size, dtype=type2.dtype, device=device))
    # Cheaper dispatch than no_grad; only `indices`, born before, leaves it.
    with torch.inference_mode():
        labels = torch.empty(3, block, dtype=torch.int64, device=device)
        # Last tiles and blocks overlap their neighbours, so that all have one size.
        for start in range(0, count, block):
            rows = slice(min(start, count - block), min(start + block, count))
            across2 = type2[rows].t().contiguous()
            across3 = across2 if type3 is type2 else type3[rows].t().contiguous()
            for tile_start in range(0, block, size):
                part = slice(min(tile_start, block - size), min(tile_start + size, block))
                tile2 = across2[:, part]
                tile3 = tile2 if type3 is type2 else across3[:, part]
                tile.decide(tile2, tile3, *groups, out=labels[:, part])
            indices[rows] = traceback(across2, across3, *labels)
    return indices

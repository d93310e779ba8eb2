"""Compiled nearest-code search of the Leech lattice for CPUs, by numba (extra `fast`).

Indices are those of the eager search, ties included: both add, compare and break ties in one order.
`search` imports this file on first use. Compiling takes seconds once a machine; numba keeps
the result beside this file, or in the user's cache folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import torch
from torch import Tensor

from lambda24.tokenizer.lattices.search.kernel_decode import decode
from lambda24.tokenizer.lattices.search.kernel_scores import (
    DOUBLED,
    NUM_ROWS,
    VECTORS,
    compiled,
    find_winners,
    score_type_2,
    score_type_3,
)
from lambda24.tokenizer.lattices.search.simd import LANES

# Threads take pieces of this many vectors in turn; shorter inputs stay on the caller's thread.
PIECE = 1024

if numba.config.DISABLE_JIT:
    raise ImportError("numba's compiler is switched off")


def _sources() -> str:
    """Hash of all that is compiled."""
    names = ("golay", "order", "search/kernel_decode", "search/kernel_scores", "search/simd")
    lattices = Path(__file__).parents[1]
    files = [(lattices / f"{name}.py").read_bytes() for name in names]
    return hashlib.sha1(b"".join(files)).hexdigest()


def _build(sources: str) -> Callable[..., None]:
    # numba's cache sees changes of this file and of closed-over values, not of other files.
    @compiled(cache=True)
    def search(
        type2: np.ndarray,
        type3: np.ndarray,
        indices: np.ndarray,
        part: tuple[int, int],
        groups: tuple[int, int],
    ) -> None:
        sources  # noqa: B018
        memory, winners = np.empty((NUM_ROWS + 1) * LANES, np.float32), np.empty(LANES, np.int32)
        aligned = -(memory.ctypes.data // 4) % LANES  # a row is one cache line
        rows = memory[aligned : aligned + NUM_ROWS * LANES]
        for block in range(part[0], part[1], LANES):
            for lane in range(LANES):
                n = min(block + lane, part[1] - 1)
                for k in range(24):
                    rows[(DOUBLED + k) * LANES + lane] = type2[n, k] + type2[n, k]
                    rows[(VECTORS + k) * LANES + lane] = type3[n, k]
            for brick in range(3):
                score_type_2(rows, brick)
                score_type_3(rows, brick)
            find_winners(rows, winners, groups[0], groups[1])
            for lane in range(min(LANES, part[1] - block)):
                indices[block + lane] = decode(rows, lane, winners[lane])

    return search


_search = _build(_sources())


def search_compiled(type2: Tensor, type3: Tensor, groups: tuple[int, int]) -> Tensor:
    """`nearest.search` for float32 vectors `(N, 24)` on a CPU.

    Pieces are shared out among `torch.get_num_threads()` threads that end with the call: forked
    processes and concurrent callers are safe, unlike under numba's own parallel loops.
    """
    count = len(type2)
    indices = torch.empty(count, dtype=torch.int64)
    arrays = [tensor.contiguous().numpy() for tensor in (type2, type3, indices)]
    starts = range(0, count, PIECE)
    threads = min(torch.get_num_threads(), len(starts))

    def search_piece(start: int) -> None:
        _search(*arrays, (start, min(start + PIECE, count)), groups)

    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(search_piece, starts))
    elif count:
        _search(*arrays, (0, count), groups)
    return indices

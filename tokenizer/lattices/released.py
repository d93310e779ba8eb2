"""The codebook of the released Λ24-SQ checkpoints ("slq_released"), in its row order.

It is not the Leech lattice's shell: its type 2 and type 3 rows come from two different Golay codes,
so that inner products also take the values ±4, ±12 and ±20 and the minimum chord is 0.866, not 1.
Tokens of the two codebooks must never be mixed. The search is the lattice's own: each family is a
coordinate permutation of the canonical one, and a table turns canonical indices into rows.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor

from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.lattices.search.nearest import Method, search
from lambda24.tokenizer.lattices.search.tile import NUM_GROUPS

# Words that span the lexicode; bit k is coordinate 23 - k.
_LEXICODE = (
    0xFF, 0xF0F, 0x3333, 0x5555, 0x9669, 0x30356,
    0x50563, 0x9063A, 0x111178, 0x21121D, 0x41144E, 0x811724,
)  # fmt: skip
# First row of the circulant of the extended quadratic residue code.
_CIRCULANT = (1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1)
# Coordinates of the released vectors in the order in which they are canonical ones.
_FRAME_2 = (*range(16), *range(23, 15, -1))
_FRAME_3 = (
    0, 1, 2, 3, 4, 6, 21, 18,
    5, 20, 10, 17, 7, 16, 12, 8,
    9, 23, 14, 22, 13, 15, 11, 19,
)  # fmt: skip


def _type_2() -> np.ndarray:
    words = {0}
    for basis in _LEXICODE:
        words |= {word ^ basis for word in words}
    supports = sorted(
        tuple(k for k in range(24) if word >> (23 - k) & 1)
        for word in words
        if word.bit_count() == 8
    )
    signs = np.array([row for row in product((-1, 1), repeat=8) if np.prod(row) > 0])
    rows = np.zeros((len(signs), len(supports), 24), dtype=np.int8)
    columns = np.array(supports)
    rows[:, np.arange(len(supports))[:, None], columns] = 2 * signs[:, None]
    return rows.reshape(-1, 24)


def _type_3() -> np.ndarray:
    right = np.ones((12, 12), dtype=np.int64)
    for shift in range(11):
        right[shift, :11] = np.roll(_CIRCULANT, shift)
    right[11, 11] = 0
    generator = np.concatenate([np.eye(12, dtype=np.int64), right], axis=1)
    messages = np.array(list(product((0, 1), repeat=12)))
    signs = 2 * (messages @ generator % 2) - 1
    rows = np.repeat(signs[None], 24, axis=0)
    for position in range(24):
        rows[position, :, position] *= -3
    return rows.reshape(-1, 24).astype(np.int8)


def _type_4() -> np.ndarray:
    rows = np.zeros((276, 4, 24), dtype=np.int8)
    for number, (i, j) in enumerate(combinations(range(24), 2)):
        rows[number, :, [i, j]] = 4 * np.array(list(product((-1, 1), repeat=2))).T
    return rows.reshape(-1, 24)


@lru_cache(maxsize=1)
def _codebook() -> Tensor:
    return torch.from_numpy(np.concatenate([_type_2(), _type_3(), _type_4()]))


@lru_cache(maxsize=1)
def _rows() -> Tensor:
    """Released row of a canonical index."""
    frame = torch.tensor(_FRAME_2).repeat(leech.NUM_CODES, 1)
    start, stop = leech.TYPE_RANGES[3]
    frame[start:stop] = torch.tensor(_FRAME_3)
    canonical = leech.rank(_codebook().gather(1, frame))
    return torch.empty_like(canonical).scatter(0, canonical, torch.arange(leech.NUM_CODES))


def codebook(dtype: torch.dtype = torch.int8, device: torch.device | str | None = None) -> Tensor:
    """All codes `(196560, 24)`: integer coordinates, or unit vectors for a floating dtype."""
    if dtype.is_floating_point:
        unit = _codebook().to(torch.float64) / leech.SQUARED_NORM**0.5
        return unit.to(device=device, dtype=dtype)
    return _codebook().to(device=device, dtype=dtype, copy=True)


@torch.no_grad()
def nearest(z: Tensor, *, chunk_size: int | None = None, method: Method | None = None) -> Tensor:
    """Rows `(...)` int64 of the codes with the largest inner product with `z` `(..., 24)`.

    As `leech.nearest`, except that ties go to the lowest canonical index, not to the lowest row.
    """
    flat = leech.prepare_vectors(z)
    frame_2, frame_3 = flat[:, list(_FRAME_2)], flat[:, list(_FRAME_3)]
    canonical = search(frame_2, frame_3, (0, NUM_GROUPS), chunk_size, method)
    return _rows().to(z.device)[canonical].view(z.shape[:-1])

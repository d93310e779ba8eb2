"""The 196,560 minimal vectors of the Leech lattice as a spherical code: order, search, neighbours.

Integer coordinates of squared norm 32; unit vectors are these divided by sqrt(32). The order is that
of `leech_order` (version `ORDER_VERSION`), the search that of `leech_search`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenizer.lattices.leech_order import (
    DIM,
    NUM_CODES,
    ORDER_VERSION,
    SQUARED_NORM,
    TYPE_RANGES,
    codebook,
    rank,
    unrank,
)
from tokenizer.lattices.leech_search import NUM_GROUPS, search

__all__ = [
    "DIM",
    "NUM_CODES",
    "ORDER_VERSION",
    "SQUARED_NORM",
    "TYPE_RANGES",
    "codebook",
    "nearest",
    "rank",
    "unrank",
]


def prepare_vectors(z: Tensor) -> Tensor:
    """`(..., 24)` of any floating dtype -> `(N, 24)` float32 or float64, contiguous and detached.

    Rows that are so large that scores would overflow are scaled down by a power of two.

    Raises:
        ValueError: not a floating dtype, last dimension not 24, or a value that is not finite.
    """
    if not z.is_floating_point():
        raise ValueError(f"z must have a floating dtype, got {z.dtype}")
    if z.ndim == 0 or z.shape[-1] != DIM:
        raise ValueError(f"z must be (..., {DIM}), got {tuple(z.shape)}")
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    flat = z.detach().reshape(-1, DIM).to(dtype).contiguous()
    if flat.numel() == 0:
        return flat
    low, high = flat.aminmax()
    peak = max(-float(low), float(high))
    if not peak < float("inf"):  # also when NaN
        raise ValueError("z must be finite, got NaN or infinity")
    limit = torch.finfo(dtype).max / 256
    if peak > limit:
        large = flat.abs().amax(1, keepdim=True) > limit
        flat = torch.where(large, flat * 2.0**-16, flat)
    return flat


@torch.no_grad()
def nearest(z: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """Indices `(...)` int64 of the codes with the largest inner product with `z` `(..., 24)`.

    Exact, computed in float32 (float64 for float64 input) whatever autocast or TF32 say; ties, as
    for the zero vector, go to the lowest index. A vector's result does not depend on the others.

    Args:
        z: any floating dtype, any leading shape, also empty.
        chunk_size: vectors in flight at once; bounds the memory at about 2 kB each on a CPU
            and 20 kB each elsewhere. None chooses it by device.

    Raises:
        ValueError: wrong dtype, last dimension not 24, or values that are not finite.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, got {chunk_size}")
    flat = prepare_vectors(z)
    return search(flat, flat, (0, NUM_GROUPS), chunk_size).view(z.shape[:-1])

"""The 196,560 minimal vectors of the Leech lattice as a spherical code: order, search, neighbours.

Integer coordinates of squared norm 32; unit vectors are these over sqrt(32). The order is that of
`order` (version `ORDER_VERSION`), the search that of `search`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lambda24.tokenizer.lattices.order import (
    DIM,
    NUM_CODES,
    ORDER_VERSION,
    SQUARED_NORM,
    TYPE_RANGES,
    codebook,
    rank,
    unrank,
)
from lambda24.tokenizer.lattices.search.nearest import Method, search
from lambda24.tokenizer.lattices.search.tile import NUM_GROUPS

__all__ = [
    "DIM",
    "NUM_CODES",
    "NUM_NEIGHBORS",
    "ORDER_VERSION",
    "SQUARED_NORM",
    "TYPE_RANGES",
    "codebook",
    "nearest",
    "neighbors",
    "random_neighbor",
    "rank",
    "unrank",
]

NUM_NEIGHBORS = 4_600  # the kissing number of the shell: codes at 60 degrees, inner product 16
_NEIGHBOR_PRODUCT = 16


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
    peak = float(torch.maximum(-low, high))  # the search's only word from an accelerator
    if not peak < float("inf"):  # also when NaN
        raise ValueError("z must be finite, got NaN or infinity")
    limit = torch.finfo(dtype).max / 256
    if peak > limit:
        large = flat.abs().amax(1, keepdim=True) > limit
        flat = torch.where(large, flat * 2.0**-16, flat)
    return flat


@torch.no_grad()
def nearest(z: Tensor, *, chunk_size: int | None = None, method: Method | None = None) -> Tensor:
    """Indices `(...)` int64 of the codes with the largest inner product with `z` `(..., 24)`.

    Exact, computed in float32 (float64 for float64 input) whatever autocast or TF32 say; ties, as
    for the zero vector, go to the lowest index. A vector's result does not depend on the others.

    Args:
        z: any floating dtype, any leading shape, also empty.
        chunk_size: vectors in flight at once in the eager search; bounds the memory, which is about
            1 kB each and 18 MB more on a CPU, and 15 kB each elsewhere. None chooses it by device.
        method: "eager" is plain PyTorch, on any device; "kernel" is compiled by numba (extra
            `fast`), for CPUs and input of float32 or less, with the same indices. Its first call on
            a machine compiles for about ten seconds; numba keeps the result on disk. None takes the
            kernel where it can be used.

    Raises:
        ValueError: wrong dtype, last dimension not 24, values that are not finite, or a method that
            cannot be used.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, got {chunk_size}")
    flat = prepare_vectors(z)
    return search(flat, flat, (0, NUM_GROUPS), chunk_size, method).view(z.shape[:-1])


def _neighbor_table(indices: Tensor, codes: Tensor) -> Tensor:
    """`(N, 4600)` sorted neighbours of N codes, given all codes in float32."""
    # Small integers: exact in every floating dtype that autocast or TF32 might choose.
    products = codes[indices] @ codes.T
    return (products == _NEIGHBOR_PRODUCT).nonzero()[:, 1].view(-1, NUM_NEIGHBORS)


def neighbors(index: int) -> Tensor:
    """Indices `(4600,)` int64, ascending, of the codes nearest to a code (60 degrees away)."""
    if not 0 <= index < NUM_CODES:
        raise ValueError(f"index must lie in [0, {NUM_CODES}), got {index}")
    return _neighbor_table(torch.tensor([index]), codebook().float())[0]


@torch.no_grad()
def random_neighbor(indices: Tensor, uniforms: Tensor, *, chunk_size: int = 64) -> Tensor:
    """One of the 4,600 nearest codes of each index: number `floor(4600 u)` in ascending order.

    Costs one product with all codes (9.4 MFLOP) an index, and `chunk_size` times 1 MB of memory.

    Args:
        indices: `(...)` int64.
        uniforms: the same shape, in [0, 1); uniform numbers give uniform neighbours.

    Raises:
        ValueError: shapes that differ, or values out of range.
    """
    if indices.shape != uniforms.shape:
        shapes = f"{tuple(indices.shape)} and {tuple(uniforms.shape)}"
        raise ValueError(f"indices and uniforms must have one shape, got {shapes}")
    if indices.numel() == 0:
        return indices.clone()
    flat, picks = indices.reshape(-1), (uniforms.reshape(-1) * NUM_NEIGHBORS).long()
    if int(flat.min()) < 0 or int(flat.max()) >= NUM_CODES:
        raise ValueError(f"indices must lie in [0, {NUM_CODES})")
    if not bool(((uniforms >= 0) & (uniforms < 1)).all()):
        raise ValueError("uniforms must lie in [0, 1)")
    picks = picks.clamp(max=NUM_NEIGHBORS - 1)  # u just below 1 rounds up in half precision
    codes = codebook(device=indices.device).float()
    parts = [
        _neighbor_table(rows, codes).gather(1, pick[:, None])[:, 0]
        for rows, pick in zip(flat.split(chunk_size), picks.split(chunk_size), strict=True)
    ]
    return torch.cat(parts).view(indices.shape)

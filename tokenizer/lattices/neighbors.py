"""Random neighbours of codes by rejection: a uniform code is as often near another as its negative.

Of the 196,560 codes 4,600 lie at 60 degrees from a given one and 4,600 at 120, whose negatives are
the former; so one try in 21 gives a uniform neighbour for the price of one inner product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lambda24.tokenizer.lattices import leech

PRODUCT = 16  # of neighbours, in integer coordinates of squared norm 32
NUM_TRIES = 96  # all miss once in a hundred codes
CHUNK = 1024  # codes at a time: 10 MB


@torch.no_grad()
def draw_neighbors(indices: Tensor, uniforms: Tensor) -> Tensor:
    """One of the 4,600 nearest codes of each index, all equally likely.

    Args:
        indices: `(N,)` int64.
        uniforms: `(N, NUM_TRIES + 1)` in [0, 1); a row decides alone.
    """
    if uniforms.shape != (len(indices), NUM_TRIES + 1):
        raise ValueError(
            f"uniforms must be ({len(indices)}, {NUM_TRIES + 1}), got {tuple(uniforms.shape)}"
        )
    parts = zip(indices.split(CHUNK), uniforms.split(CHUNK), strict=True)
    return torch.cat([_draw(rows, numbers) for rows, numbers in parts])


def _draw(indices: Tensor, uniforms: Tensor) -> Tensor:
    codes = leech.codebook(device=indices.device)
    tries = (uniforms[:, :-1].double() * leech.NUM_CODES).long()  # (N, T)
    candidates, own = codes[tries].short(), codes[indices].short()  # (N, T, 24), (N, 24)
    products = (candidates * own[:, None]).sum(-1, dtype=torch.int16)
    hits = products.abs() == PRODUCT
    first = hits.byte().argmax(1, keepdim=True)  # (N, 1)
    chosen = candidates.take_along_dim(first[..., None], 1)[:, 0]
    chosen = chosen * products.gather(1, first).sign()
    missed = ~hits.any(1)
    chosen[missed] = own[missed]  # any code: replaced below
    found = leech.rank(chosen)
    if bool(missed.any()):
        found[missed] = leech.random_neighbor(indices[missed], uniforms[missed, -1])
    return found

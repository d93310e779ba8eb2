"""Scores of all that a brick of eight coordinates can hold, and of all codes as sums of three.

The score of a code is the sum of 24 per-coordinate scores. The 2,641 brick vectors are grouped in
classes whose members are listed in the order of the canonical index (see `order`), so that
the scores of all codes are broadcast sums written in order, and a code is drawn class by class.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import torch
from einops import rearrange, repeat
from torch import Tensor

from lambda24.tokenizer.lattices import order as leech_order

# Vectors of a brick by kind: classes, then members.
SHAPES = {
    "plain": (8, 8, 2),  # type 3: x, label, complement
    "tripled": (8, 8, 2, 8),  # one coordinate times -3: x, label, complement, coordinate
    "pair": (7, 8, 2),  # type 2: x - 1, label, sign
    "tetrad": (7, 8, 16),  # x - 1, label, complement and signs
    "tetrad0": (14, 16),  # x = 0: label, complement and signs
    "full": (128,),  # eight +-2
    "empty": (1,),
    "one_four": (8, 2),  # one +-4: coordinate, sign
    "two_fours": (112,),  # two +-4
}
ROWS = 4  # tokens written at a time: 3 MiB
START_2B, START_2C = leech_order.START_2B, leech_order.START_2C
START_3, START_4 = leech_order.START_3, leech_order.START_4


@dataclass(frozen=True)
class BrickScores:
    """Scores per kind of brick vector of n tokens, each `(3, *SHAPES[kind], n)`."""

    plain: Tensor
    tripled: Tensor
    pair: Tensor
    tetrad: Tensor
    tetrad0: Tensor
    full: Tensor
    empty: Tensor
    one_four: Tensor
    two_fours: Tensor


def brick_scores(scores: Tensor) -> BrickScores:
    """Sums of `scores (N, 24, 9)` over the coordinates of each brick vector.

    Only gathers and additions: a token's sums do not depend on the tokens beside it.
    """
    tables = _tables(scores.device)
    columns = scores.permute(1, 2, 0).reshape(3, 72, len(scores))
    halves = []
    for cells, vector_of in ((tables.low, tables.low_of), (tables.high, tables.high_of)):
        cell = [columns.index_select(1, column) for column in cells.unbind(1)]
        halves.append((cell[0] + cell[1] + cell[2] + cell[3]).index_select(1, vector_of))
    sizes = [torch.Size(shape).numel() for shape in SHAPES.values()]
    parts = (halves[0] + halves[1]).split(sizes, dim=1)  # (3, 2641, n)
    shaped = zip(parts, SHAPES.values(), strict=True)
    return BrickScores(*(part.unflatten(1, shape) for part, shape in shaped))


def code_scores(scores: Tensor) -> Tensor:
    """Scores of all codes in canonical order, `(N, 24, 9)` -> `(N, 196560)`."""
    bricks = brick_scores(scores)
    out = scores.new_empty(len(scores), leech_order.NUM_CODES)
    out[:, :START_2B] = full_scores(bricks).flatten(0, 1).T
    out[:, START_4:] = four_scores(bricks).T
    _, first, second = bricks_in_turn(bricks.tetrad0)
    first = rearrange(first + bricks.empty[:, :, None], "p a f n -> n p a f 1").contiguous()
    second = rearrange(second, "p a f n -> n p a 1 f").contiguous()
    blocks = [
        (out[:, START_2B:START_2C].unflatten(1, (3, 14, 16, 16)), first, second),
        (
            out[:, START_2C:START_3].unflatten(1, (7, 3, 8, 8, 16, 4, 1)),
            *_merged_summands(bricks.tetrad.unflatten(3, (16, 1)), bricks.pair),
        ),
        (
            out[:, START_3:START_4].unflatten(1, (8, 3, 8, 8, 2, 4, 8)),
            *_merged_summands(bricks.tripled, bricks.plain),
        ),
    ]
    # Copied, then added to in place a few tokens at a time: long vector loops in the cache.
    for start in range(0, len(scores), ROWS):
        rows = slice(start, start + ROWS)
        for block, one, other in blocks:
            block[rows].copy_(one[rows].expand_as(block[rows])).add_(other[rows])
    return out


def _merged_summands(large: Tensor, small: Tensor) -> tuple[Tensor, Tensor]:
    """Summands of the codes with a large class on brick p and small ones on the two others.

    Args:
        large: `(p, x, c, k, m, n)`.
        small: `(p, x, label, 2, n)`.

    Returns:
        `(n, x, p, c, b, 1, 4, 1)` and `(n, x, p, c, 1, k, 4, m)`; 4 members of the two others.
    """
    _, first, second = bricks_in_turn(small)
    others = first[:, :, None, :, :, None] + second[:, :, matching(small.device)].unsqueeze(4)
    others = rearrange(others, "p x c b s t n -> n x p c b 1 (s t) 1")
    return others.contiguous(), repeat(large, "p x c k m n -> n x p c 1 k s m", s=4).contiguous()


def full_scores(bricks: BrickScores) -> Tensor:
    """Codes with one full brick and two empty ones in order, `(3, 128, n)`."""
    _, empty1, empty2 = bricks_in_turn(bricks.empty)
    return bricks.full + empty1 + empty2


def four_scores(bricks: BrickScores) -> Tensor:
    """Codes of type 4 in order, `(1104, n)`."""
    _, empty1, empty2 = bricks_in_turn(bricks.empty)
    one, one1, _ = bricks_in_turn(bricks.one_four.flatten(1, 2))
    same = bricks.two_fours + empty1 + empty2
    apart = one[:, :, None] + one1[:, None] + empty2[:, None]  # bricks p and q1
    unordered = torch.cat([same.flatten(0, 1), apart.flatten(0, 2)])
    return unordered.index_select(0, _tables(unordered.device).fours)


def bricks_in_turn(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`values (3, ...)` of the bricks p, q1 = p + 1 and q2 = p + 2 modulo 3, for each p."""
    return values, values.roll(-1, 0), values.roll(-2, 0)


def matching(device: torch.device) -> Tensor:
    """`[c, b]` -> c ^ b, `(8, 8)`: the label of q2 that goes with label c of p and b of q1."""
    labels = torch.arange(8, device=device)
    return labels[:, None] ^ labels


@dataclass(frozen=True)
class _Tables:
    low: Tensor  # (half vectors, 4) columns of coordinates 0..3 among the 72 of a brick
    low_of: Tensor  # (2641,) brick vector -> half vector
    high: Tensor
    high_of: Tensor
    fours: Tensor  # (1104,) type 4 codes in order -> place in `four_scores`


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # cached tensors must serve training too
def _tables(device: torch.device) -> _Tables:
    cells = _brick_vectors() + 4 + 9 * torch.arange(8)
    low, low_of = torch.unique(cells[:, :4], dim=0, return_inverse=True)
    high, high_of = torch.unique(cells[:, 4:], dim=0, return_inverse=True)
    tensors = (low, low_of, high, high_of, _four_places())
    return _Tables(*(tensor.to(device) for tensor in tensors))


def _brick_vectors() -> Tensor:
    """All vectors that a brick can hold, `(2641, 8)`, read off the codebook."""
    codes = leech_order.codebook(torch.int64)
    full = codes[:128, :8]
    tetrad0 = codes[START_2B:START_2C].view(3, 14, 16, 16, 24)[2, :, :, 0, :8]
    type2 = codes[START_2C:START_3].view(7, 3, 8, 8, 16, 2, 2, 24)
    type3 = codes[START_3:START_4].view(8, 3, 8, 8, 2, 2, 2, 8, 24)
    # Brick 0 is the first brick after p = 2.
    pair, plain = type2[:, 2, 0, :, 0, :, 0, :8], type3[:, 2, 0, :, 0, :, 0, 0, :8]
    tetrad, tripled = type2[:, 0, :, 0, :, 0, 0, :8], type3[:, 0, :, 0, :, 0, 0, :, :8]
    signs = torch.tensor([4, -4])
    one_four = torch.eye(8, dtype=torch.int64)[:, None] * signs[:, None]
    two_fours = [
        first * one_four[i, 0] // 4 + second * one_four[j, 0] // 4
        for i, j in itertools.combinations(range(8), 2)
        for first in (4, -4)
        for second in (4, -4)
    ]
    empty = torch.zeros(1, 8, dtype=torch.int64)
    kinds = (plain, tripled, pair, tetrad, tetrad0, full, empty, one_four, torch.stack(two_fours))
    return torch.cat([vectors.reshape(-1, 8) for vectors in kinds])


def _four_places() -> Tensor:
    pairs = {pair: n for n, pair in enumerate(itertools.combinations(range(8), 2))}
    places = []
    for i, j in itertools.combinations(range(24), 2):
        (p, k), (q, m) = divmod(i, 8), divmod(j, 8)
        for a, b in itertools.product(range(2), repeat=2):
            if p == q:
                places.append((p * 28 + pairs[k, m]) * 4 + 2 * a + b)
            elif q == p + 1:
                places.append(336 + (p * 16 + 2 * k + a) * 16 + 2 * m + b)
            else:  # bricks 0 and 2: listed from brick 2, whose next is brick 0
                places.append(336 + (q * 16 + 2 * m + b) * 16 + 2 * k + a)
    return torch.tensor(places)

"""Scores of all that a brick of eight coordinates can hold, and of all codes as sums of three.

The score of a code is the sum of 24 per-coordinate scores. The 2,513 brick vectors are grouped in
classes whose members are listed in the order of the canonical index (see `leech_order`), so that
the scores of all codes are broadcast sums written in order, and a code is drawn class by class.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tokenizer.lattices import leech_order

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
START_2B, START_2C = leech_order.START_2B, leech_order.START_2C
START_3, START_4 = leech_order.START_3, leech_order.START_4


@dataclass(frozen=True)
class BrickScores:
    """Scores per kind of brick vector, each `(N, 3, *SHAPES[kind])`."""

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

    Only gathers and additions: a row does not depend on the rows beside it.
    """
    tables = _tables(scores.device)
    columns = scores.reshape(len(scores), 3, 72)
    halves = []
    for cells, vector_of in ((tables.low, tables.low_of), (tables.high, tables.high_of)):
        cell = [columns.index_select(2, column) for column in cells.unbind(1)]
        halves.append((cell[0] + cell[1] + cell[2] + cell[3]).index_select(2, vector_of))
    sizes = [torch.Size(shape).numel() for shape in SHAPES.values()]
    parts = (halves[0] + halves[1]).split(sizes, dim=2)  # (N, 3, 2513)
    shaped = zip(parts, SHAPES.values(), strict=True)
    return BrickScores(*(part.unflatten(2, shape) for part, shape in shaped))


def code_scores(scores: Tensor) -> Tensor:
    """Scores of all codes in canonical order, `(N, 24, 9)` -> `(N, 196560)`."""
    bricks = brick_scores(scores)
    empty, empty1, empty2 = bricks_in_turn(bricks.empty)
    _, first, second = bricks_in_turn(bricks.tetrad0)  # (N, 3, 14, 16)
    parts = [
        bricks.full + empty1 + empty2,
        first[..., :, None] + second[..., None, :] + empty[..., None, None],
        _merged(bricks.tetrad.unflatten(4, (16, 1, 1)), bricks.pair),
        _merged(bricks.tripled.unflatten(4, (2, 1)), bricks.plain),
        four_scores(bricks),
    ]
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def _merged(large: Tensor, small: Tensor) -> Tensor:
    """Codes `(N, x, p, c, b, ...)`: a large class on brick p, small ones on the two others.

    Args:
        large: members `(N, 3, x, c, *, 1, *)`; the 1 stands where the two signs of the others go.
        small: `(N, 3, x, label, 2)`.
    """
    _, first, second = bricks_in_turn(small)
    signs = first[..., None, :, :, None] + second[:, :, :, matching(small.device)][..., None, :]
    signs = signs.flatten(5).transpose(1, 2)  # (N, x, 3, c, b, 4)
    return large.transpose(1, 2).unsqueeze(4) + signs[..., None, :, None]


def four_scores(bricks: BrickScores) -> Tensor:
    """Codes of type 4 in order, `(N, 1104)`."""
    _, empty1, empty2 = bricks_in_turn(bricks.empty)
    one, one1, _ = bricks_in_turn(bricks.one_four.flatten(2))
    same = bricks.two_fours + empty1 + empty2
    apart = one[..., :, None] + one1[..., None, :] + empty2[..., None]  # bricks p and q1
    unordered = torch.cat([same.flatten(1), apart.flatten(1)], dim=1)
    return unordered.index_select(1, _tables(unordered.device).fours)


def bricks_in_turn(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`values (N, 3, ...)` of the bricks p, q1 = p + 1 and q2 = p + 2 modulo 3, for each p."""
    return values, values.roll(-1, 1), values.roll(-2, 1)


def matching(device: torch.device) -> Tensor:
    """`[c, b]` -> c ^ b, `(8, 8)`: the label of q2 that goes with label c of p and b of q1."""
    labels = torch.arange(8, device=device)
    return labels[:, None] ^ labels


@dataclass(frozen=True)
class _Tables:
    low: Tensor  # (half vectors, 4) columns of coordinates 0..3 among the 72 of a brick
    low_of: Tensor  # (2513,) brick vector -> half vector
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
    """All vectors that a brick can hold, `(2513, 8)`, read off the codebook."""
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

"""From the winning group of codes to the code: the second half of the nearest-code search.

Each function rebuilds, for N vectors of one family, the remaining labels and signs of the best code
and returns its canonical index (the formulas of `leech_order`). Ties go to the lowest index:
`max` names the first maximum, and the digits of an index are decided most significant first.
Vectors are columns, `(24, N)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tokenizer.lattices import golay
from tokenizer.lattices.leech_order import START_2B, START_2C, START_3, START_4


@dataclass(frozen=True)
class _Tables:
    """Coordinates and signs by label, on one device."""

    signs: Tensor  # (8 k, 8 x, 8 a) int8: sign of coordinate k in brick word (x, a)
    pairs: Tensor  # (2, 4 t, 8 x) coordinates i, j of pair class t of x
    tetrads: Tensor  # (4, 2, 7 t, 8 x) coordinates of tetrad class t of x, and of its complement
    xor: Tensor  # (8, 8)


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> _Tables:
    signs = torch.zeros(8, 8, 8, dtype=torch.int8)
    pairs = torch.zeros(2, 4, 8, dtype=torch.int64)
    tetrads = torch.zeros(4, 2, 7, 8, dtype=torch.int64)
    for x in range(8):
        for a in range(8):
            word = golay.brick_word(x, a)
            signs[:, x, a] = torch.tensor([1 - 2 * (word >> k & 1) for k in range(8)])
        for t in range(4 if x else 7):
            if x:
                pairs[:, t, x] = torch.tensor(golay.pair(x, t))
            for complemented in (0, 1):
                tetrads[:, complemented, t, x] = torch.tensor(golay.tetrad(x, t, complemented))
    xor = torch.arange(8)[:, None] ^ torch.arange(8)
    return _Tables(*(table.to(device) for table in (signs, pairs, tetrads, xor)))


def _roles(vectors: Tensor, p: Tensor) -> Tensor:
    """Bricks p, q1, q2 as `(3, 8, N)`."""
    role = (p + torch.arange(3, device=p.device)[:, None]) % 3
    return vectors.view(3, 8, -1).gather(0, role[:, None].expand(-1, 8, -1))


def _pick(table: Tensor, row: Tensor) -> Tensor:
    """`table[row[n], n]` of a table `(rows, N)`."""
    return table.gather(0, row[None])[0]


def _sign_score(values: Tensor, parity: Tensor | int) -> Tensor:
    """Largest sum of ±`values` `(n, ..., N)` whose number of minus signs has the given parity."""
    size = values.abs()
    wrong = ((values < 0).to(values.dtype).sum(0) % 2) != parity
    return size.sum(0) - 2 * size.amin(0) * wrong


def _sign_bits(values: Tensor, parity: Tensor | int) -> Tensor:
    """Minus bits of all but the last value in the best such sum, the first one highest."""
    size, minus = values.abs(), (values < 0).to(values.dtype)
    wrong = (minus.sum(0) % 2) != parity
    weights = (1 << torch.arange(len(values) - 1, -1, -1, device=values.device)) >> 1
    weights = weights.to(values.dtype).view(-1, *(1,) * (values.ndim - 1))
    # The cheapest flip; among equals the one that leaves the smallest bits.
    change = (weights * (1 - 2 * minus)).masked_fill(size != size.amin(0), 2.0 ** len(values))
    return ((weights * minus).sum(0) + change.amin(0) * wrong).long()


def _type_2a(vectors: Tensor, group: Tensor, label: Tensor) -> Tensor:
    bricks = vectors.view(3, 8, -1).transpose(0, 1)
    p = _sign_score(bricks, 0).max(0).indices
    brick = bricks.gather(1, p.expand(8, 1, -1))[:, 0]
    return p * 128 + _sign_bits(brick, 0)


def _type_2b(vectors: Tensor, group: Tensor, label: Tensor) -> Tensor:
    tables = _tables(vectors.device)
    values = vectors.view(3, 8, -1)[:, tables.tetrads[:, :, :, 0].flatten()].view(3, 4, 2, 7, 1, -1)
    parity = torch.arange(2, device=vectors.device)[:, None]
    score = _sign_score(values.transpose(0, 1), parity).amax(1)  # (3 bricks, 7 a, 2 parities, N)
    sums = score.roll(-1, 0) + score.roll(-2, 0)  # bricks q1 and q2 of every p
    best = sums.flatten(0, 2).max(0).indices
    p, t, pi = best // 14, best // 2 % 7, best % 2
    tetrad = tables.tetrads[:, :, t, 0].flatten(0, 1)
    sides = _roles(vectors, p)[1:].gather(1, tetrad.expand(2, -1, -1))
    h, k3 = _best_half(sides.view(2, 4, 2, -1).permute(1, 2, 0, 3), pi)
    f1, f2 = 8 * h + k3
    return START_2B + (best * 16 + f1) * 16 + f2


def _best_half(halves: Tensor, parity: Tensor) -> tuple[Tensor, Tensor]:
    """The better of a tetrad and its complement `(4, 2, ..., N)`, and its minus bits."""
    first, second = _sign_score(halves, parity)
    h = second > first
    return h.long(), _sign_bits(torch.where(h, halves[:, 1], halves[:, 0]), parity)


def _best_sides(first: Tensor, second: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Best label b of brick q1, and the minus bits of q1 and q2, from signed scores `(8, N)`."""
    second = second.gather(0, _tables(first.device).xor[:, c])
    b = (first.abs() + second.abs()).max(0).indices
    return b, 2 * (_pick(first, b) < 0) + (_pick(second, b) < 0)


def _type_2c(vectors: Tensor, group: Tensor, label: Tensor) -> Tensor:
    tables = _tables(vectors.device)
    x, p, c = group - 1, label >> 3, label & 7
    roles = _roles(vectors, p)
    pairs = tables.pairs[:, :, x].flatten(0, 1)
    i, j = roles[1:].gather(1, pairs.expand(2, -1, -1)).view(2, 2, 4, -1).unbind(1)
    sides = torch.stack([i + j, i - j], dim=2).flatten(1, 2)  # (2, 8, N)
    b, signs = _best_sides(sides[0], sides[1], c)
    tetrad = tables.tetrads[:, :, c >> 1, x].flatten(0, 1)
    h, k3 = _best_half(roles[0].gather(0, tetrad).view(4, 2, -1), c & 1)
    return START_2C + (((((x - 1) * 3 + p) * 8 + c) * 8 + b) * 2 + h) * 32 + k3 * 4 + signs


def _type_3(vectors: Tensor, group: Tensor, label: Tensor) -> Tensor:
    signs = _tables(vectors.device).signs
    x, p, c = group - 9, label >> 3, label & 7
    roles = _roles(vectors, p)
    sides = roles[1:].transpose(0, 1) * signs[:, x, 0][:, None]  # (8, 2, N)
    for _ in range(3):  # Walsh-Hadamard transform: each stage makes one bit of the label
        even, odd = sides[0::2], sides[1::2]
        sides = torch.cat([even + odd, even - odd])
    b, minus = _best_sides(sides[:, 0], sides[:, 1], c)
    signed = roles[0] * signs[:, x, c]
    total = signed.sum(0)
    flip = 4 * signed.amax(0) - total > total - 4 * signed.amin(0)
    i = torch.where(flip, signed, -signed).max(0).indices
    return START_3 + ((((x * 3 + p) * 8 + c) * 8 + b) * 8 + 4 * flip + minus) * 8 + i


def _type_4(vectors: Tensor, group: Tensor, label: Tensor) -> Tensor:
    size = vectors.abs()
    first = size.max(0).indices
    second = size.scatter(0, first[None], -1.0).max(0).indices
    i, j = torch.minimum(first, second), torch.maximum(first, second)
    minus = 2 * (_pick(vectors, i) < 0) + (_pick(vectors, j) < 0)
    return START_4 + 4 * ((i * (47 - i) >> 1) + j - i - 1) + minus


# First and last + 1 group, and whether the family is of type 3.
_FAMILIES = (
    (0, 1, False, _type_2a),
    (1, 2, False, _type_2b),
    (2, 9, False, _type_2c),
    (9, 17, True, _type_3),
    (17, 18, False, _type_4),
)


def traceback_split(type2: Tensor, type3: Tensor, group: Tensor, label: Tensor) -> Tensor:
    """`traceback` where each family's function sees its own vectors only."""
    indices = torch.empty_like(group)
    for first, stop, is_type3, family in _FAMILIES:
        rows = ((group >= first) & (group < stop)).nonzero()[:, 0]
        if len(rows):
            vectors = (type3 if is_type3 else type2).index_select(1, rows)
            indices[rows] = family(vectors, group[rows], label[rows])
    return indices


def traceback_all(type2: Tensor, type3: Tensor, group: Tensor, label: Tensor) -> Tensor:
    """`traceback` where every function sees all vectors: more work, no word from the device."""
    indices = torch.empty_like(group)
    for first, stop, is_type3, family in _FAMILIES:
        found = family(type3 if is_type3 else type2, group.clamp(first, stop - 1), label)
        indices = torch.where((group >= first) & (group < stop), found, indices)
    return indices


def traceback(type2: Tensor, type3: Tensor, group: Tensor, label: Tensor) -> Tensor:
    """Canonical indices `(N,)` of the best codes of vectors `(24, N)`, given group and label."""
    how = traceback_split if group.device.type == "cpu" else traceback_all
    return how(type2, type3, group, label)

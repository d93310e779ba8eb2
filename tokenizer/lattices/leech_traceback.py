"""From the winning group of codes to the code: the second half of the nearest-code search.

Each function rebuilds, for N vectors of one family, the remaining labels and signs of the best code and
returns its canonical index (the formulas of `leech_order`). Ties go to the lowest index throughout:
`argmax` returns the first maximum, and the digits of the index are decided most significant first.
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
    signs: Tensor  # (8, 8, 8) int8: ±1 of brick word (x, a)
    pairs: Tensor  # (8, 2, 4) coordinates i, j of the pair classes t of x
    tetrads: Tensor  # (8, 7, 2, 4) coordinates of tetrad class t of x, and of its complement
    xor: Tensor  # (8, 8)


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> _Tables:
    signs = [
        [[1 - 2 * (golay.brick_word(x, a) >> k & 1) for k in range(8)] for a in range(8)]
        for x in range(8)
    ]
    pairs = torch.zeros(8, 2, 4, dtype=torch.int64)
    tetrads = torch.zeros(8, 7, 2, 4, dtype=torch.int64)
    for x in range(8):
        for t in range(4 if x else 7):
            if x:
                pairs[x, :, t] = torch.tensor(golay.pair(x, t))
            for complemented in (0, 1):
                tetrads[x, t, complemented] = torch.tensor(golay.tetrad(x, t, complemented))
    xor = torch.arange(8)[:, None] ^ torch.arange(8)
    return _Tables(
        signs=torch.tensor(signs, dtype=torch.int8, device=device),
        pairs=pairs.to(device),
        tetrads=tetrads.to(device),
        xor=xor.to(device),
    )


def _roles(vectors: Tensor, p: Tensor) -> Tensor:
    """`(N, 24)` -> bricks p, q1, q2 as `(N, 3, 8)`."""
    role = (p[:, None] + torch.arange(3, device=p.device)) % 3
    return vectors.view(-1, 3, 8).gather(1, role[:, :, None].expand(-1, -1, 8))


def _best_signs(values: Tensor, parity: Tensor) -> tuple[Tensor, Tensor]:
    """Best sign choice of `values` `(..., n)` with a given parity of minus signs.

    Returns:
        Its score, and the minus bits of all but the last value, the first one highest.
    """
    size = values.abs()
    minus = (values < 0).long()
    count = values.shape[-1]
    wrong = (minus.sum(-1) & 1) != parity
    least = size.amin(-1)
    score = size.sum(-1) - 2 * least * wrong
    weight = (1 << torch.arange(count - 1, -1, -1, device=values.device)) >> 1
    # The cheapest flip; among equals the one that leaves the smallest bits.
    change = (weight * (1 - 2 * minus)).masked_fill(size != least[..., None], 1 << count)
    return score, (weight * minus).sum(-1) + change.amin(-1) * wrong


def _type_2a(vectors: Tensor, group: Tensor, label: Tensor) -> Tensor:
    score, bits = _best_signs(vectors.view(-1, 3, 8), torch.zeros_like(group)[:, None])
    p = score.argmax(1)
    return p * 128 + bits.gather(1, p[:, None])[:, 0]


def _type_2b(vectors: Tensor, group: Tensor, label: Tensor) -> Tensor:
    tetrads = _tables(vectors.device).tetrads[0].flatten()  # (7 * 2 * 4,)
    values = vectors.view(-1, 3, 8)[:, :, tetrads].view(-1, 3, 7, 1, 2, 4)
    parity = torch.arange(2, device=vectors.device)[:, None]
    score, bits = _best_signs(values.expand(-1, -1, -1, 2, -1, -1), parity)
    score, flip = score.max(-1)  # (N, 3, 7, 2): brick, a - 1, parity
    code = flip * 8 + bits.gather(-1, flip[..., None])[..., 0]
    pair_score = score[:, [1, 2, 0]] + score[:, [2, 0, 1]]
    best = pair_score.flatten(1).argmax(1)
    p, class_ = best // 14, best % 14
    row = torch.arange(len(best), device=best.device)
    code = code.flatten(2)
    f1, f2 = code[row, (p + 1) % 3, class_], code[row, (p + 2) % 3, class_]
    return START_2B + (best * 16 + f1) * 16 + f2


def _convolve(features: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Best label b of brick q1 and the minus bits of q1, q2, from signed scores `(N, 2, 8)`."""
    first = features[:, 0]
    second = features[:, 1].gather(1, _tables(features.device).xor[c])
    b = (first.abs() + second.abs()).argmax(1)
    s1, s2 = (side.gather(1, b[:, None])[:, 0] < 0 for side in (first, second))
    return b, 2 * s1.long() + s2.long()


def _type_2c(vectors: Tensor, group: Tensor, label: Tensor) -> Tensor:
    tables = _tables(vectors.device)
    x, p, c = group - 1, label >> 3, label & 7
    roles = _roles(vectors, p)
    pairs = tables.pairs[x].view(-1, 1, 8).expand(-1, 2, -1)
    i, j = roles[:, 1:].gather(2, pairs).view(-1, 2, 2, 4).unbind(2)
    b, signs = _convolve(torch.stack([i + j, i - j], dim=-1).flatten(2), c)
    tetrad = tables.tetrads[x, c >> 1].flatten(1)
    values = roles[:, 0].gather(1, tetrad).view(-1, 2, 4)
    score, bits = _best_signs(values, (c & 1)[:, None])
    h = (score[:, 1] > score[:, 0]).long()
    k3 = bits.gather(1, h[:, None])[:, 0]
    return START_2C + (((((x - 1) * 3 + p) * 8 + c) * 8 + b) * 2 + h) * 32 + k3 * 4 + signs


def _type_3(vectors: Tensor, group: Tensor, label: Tensor) -> Tensor:
    tables = _tables(vectors.device)
    x, p, c = group - 9, label >> 3, label & 7
    roles = _roles(vectors, p)
    words = roles[:, 1:] * tables.signs[x, 0][:, None]
    for _ in range(3):  # Walsh-Hadamard transform: one bit of the label a stage
        even, odd = words[..., 0::2], words[..., 1::2]
        words = torch.cat([even + odd, even - odd], dim=-1)
    b, signs = _convolve(words, c)
    signed = roles[:, 0] * tables.signs[x, c]
    total = signed.sum(1)
    flip = 4 * signed.amax(1) - total > total - 4 * signed.amin(1)
    i = torch.where(flip[:, None], -signed, signed).argmin(1)
    s = flip.long() * 4 + signs
    return START_3 + ((((x * 3 + p) * 8 + c) * 8 + b) * 8 + s) * 8 + i


def _type_4(vectors: Tensor, group: Tensor, label: Tensor) -> Tensor:
    size = vectors.abs()
    first = size.argmax(1, keepdim=True)
    second = size.scatter(1, first, -1.0).argmax(1, keepdim=True)
    places = torch.cat([first, second], dim=1)
    i, j = places.amin(1), places.amax(1)
    minus_i, minus_j = (vectors.gather(1, k[:, None])[:, 0] < 0 for k in (i, j))
    pair = torch.div(i * (47 - i), 2, rounding_mode="floor") + j - i - 1
    return START_4 + 4 * pair + 2 * minus_i.long() + minus_j.long()


# First and last + 1 group, and whether the family is of type 3.
_FAMILIES = (
    (0, 1, False, _type_2a),
    (1, 2, False, _type_2b),
    (2, 9, False, _type_2c),
    (9, 17, True, _type_3),
    (17, 18, False, _type_4),
)


def traceback(type2: Tensor, type3: Tensor, group: Tensor, label: Tensor) -> Tensor:
    """Canonical indices `(N,)` of the best codes of vectors `(N, 24)`, given each one's group.

    On a CPU each family's function sees its own vectors only. Elsewhere all of them see all vectors
    and the right answer is selected, which needs no word from the device.
    """
    indices = torch.empty_like(group)
    for first, stop, is_type3, family in _FAMILIES:
        vectors = type3 if is_type3 else type2
        member = (group >= first) & (group < stop)
        if group.device.type == "cpu":
            rows = member.nonzero()[:, 0]
            if len(rows):
                indices[rows] = family(vectors[rows], group[rows], label[rows])
        else:
            inside = group.clamp(first, stop - 1)
            indices = torch.where(member, family(vectors, inside, label), indices)
    return indices

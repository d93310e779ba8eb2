"""From the winning group of codes to the code: the second half of the nearest-code search.

Each function rebuilds, for N vectors of one family, the signs of the best code with given labels
and returns its canonical index (the formulas of `order`). Ties go to the lowest index: among
equals the smallest digits win. Vectors are columns, `(24, N)`. Sums are written out pair by pair,
as in the scores: a reduction's order, and with it the last bit, may depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from lambda24.tokenizer.lattices import golay
from lambda24.tokenizer.lattices.order import index_2a, index_2b, index_2c, index_3, index_4

BOUNDS = (1, 2, 9, 17)  # first groups of types 2b, 2c, 3 and 4
FIRST_3 = 168  # labelled codes `(x', p, c)` before those of type 3


@dataclass(frozen=True)
class _Tables:
    """What a code's number within its family says, on one device."""

    places_2b: Tensor  # (4, 2, 2, 42) coordinates of the tetrad, complement, brick q1 or q2
    places_2c: Tensor  # (12, 1344) of brick p's tetrad and complement; i of q1, q2; j of q1, q2
    odd_2c: Tensor  # (3, 1344) bool: sign parities of bricks p, q1, q2
    signs_3: Tensor  # (24, 1536) float32 signs of the three brick words
    sides_3: Tensor  # (3, 3) weights of the complement bits of the bricks, by p
    minus: Tensor  # (4,) `8 h + k3` of a negative sum or difference, of each half
    plus: Tensor  # (4,)
    weights: Tensor  # (8, 1) of the sign bits of a full brick


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> _Tables:
    places_2b, places_2c, odd_2c, signs_3 = [], [], [], []
    for p, t, _ in product(range(3), range(7), range(2)):
        offsets = [8 * ((p + role) % 3) for role in (1, 2)]
        halves = [golay.tetrad(0, t, complemented) for complemented in (0, 1)]
        places_2b.append([half[k] + o for k in range(4) for half in halves for o in offsets])
    for x, p, c, b in product(range(1, 8), range(3), range(8), range(8)):
        zero, one, two = (8 * ((p + role) % 3) for role in range(3))
        halves = [golay.tetrad(x, c >> 1, complemented) for complemented in (0, 1)]
        (i1, j1), (i2, j2) = golay.pair(x, b >> 1), golay.pair(x, (b ^ c) >> 1)
        tetrad = [half[k] + zero for k in range(4) for half in halves]
        places_2c.append([*tetrad, i1 + one, i2 + two, j1 + one, j2 + two])
        odd_2c.append([c & 1, b & 1, (b ^ c) & 1])
    for x, p, c, b in product(range(8), range(3), range(8), range(8)):
        labels = {p: c, (p + 1) % 3: b, (p + 2) % 3: b ^ c}
        words = [golay.brick_word(x, labels[brick]) for brick in range(3)]
        signs_3.append([1.0 - 2 * (word >> k & 1) for word in words for k in range(8)])

    def columns(rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, device=device).t().contiguous()

    return _Tables(
        places_2b=columns(places_2b).view(4, 2, 2, -1),
        places_2c=columns(places_2c),
        odd_2c=columns(odd_2c).bool(),
        signs_3=torch.tensor(signs_3, device=device).t().contiguous(),
        sides_3=columns([[0, 2, 1], [1, 0, 2], [2, 1, 0]]),
        minus=torch.tensor([6, 14, 4, 12], device=device),
        plus=torch.tensor([0, 8, 2, 10], device=device),
        weights=torch.tensor([[64, 32, 16, 8, 4, 2, 1, 0]], device=device).t(),
    )


def _best_half(halves: Tensor, odd: Tensor) -> Tensor:
    """`8 h + k3`: the better of a tetrad and its complement `(4, 2, ..., N)`, and its minus bits.

    The number of minus signs must be odd where `odd` `(..., N)`. Of the first two coordinates
    either the sum decides (equal signs) or the difference (unlike signs), of the last two likewise.
    """
    first, last = halves[0::2], halves[1::2]  # of the first and of the last two coordinates
    left, right = torch.stack([first + last, first - last], 1)  # (2 equal or unlike, 2 h, ..., N)
    right = torch.where(odd, right.flip(0), right)
    score = (left.abs() + right.abs()).flatten(0, 1)
    # Minus bits of equal signs: 000 or 110; of unlike ones: 010 or 100. The third is right's sign.
    tables = _tables(halves.device)
    bits = torch.where((left < 0).flatten(0, 1).movedim(0, -1), tables.minus, tables.plus)
    bits = bits.movedim(-1, 0) + (right < 0).flatten(0, 1)
    return bits.masked_fill_(score != score.amax(0), 16).amin(0)


def _sign_bits(values: Tensor) -> Tensor:
    """Minus bits, first one highest, of all but the last of `(8, N)` in the best even signs."""
    size, minus, weights = values.abs(), values < 0, _tables(values.device).weights
    bits = torch.where(minus, weights, 0)
    # The cheapest flip; among equals the one that leaves the smallest bits.
    change = torch.where(size == size.amin(0), weights - 2 * bits, 256).amin(0)
    return bits.sum(0) + change * (minus.sum(0) & 1)


def _type_2a(vectors: Tensor, p: Tensor, b: Tensor) -> Tensor:
    brick = vectors.view(3, 8, -1).gather(0, p.expand(1, 8, -1))[0]
    return index_2a(p, _sign_bits(brick))


def _type_2b(vectors: Tensor, code: Tensor, b: Tensor) -> Tensor:
    places = _tables(vectors.device).places_2b[..., code]
    halves = vectors.gather(0, places.flatten(0, 2)).view(places.shape)
    f1, f2 = _best_half(halves, (code & 1).bool())
    return index_2b(code, f1, f2)


def _type_2c(vectors: Tensor, code: Tensor, b: Tensor) -> Tensor:
    tables = _tables(vectors.device)
    code = (code << 3) + b
    values = vectors.gather(0, tables.places_2c.index_select(1, code))
    odd = tables.odd_2c.index_select(1, code)
    f = _best_half(values[:8].view(4, 2, -1), odd[0])
    first, second = values[8:10], values[10:]
    s1, s2 = torch.where(odd[1:], first - second, first + second) < 0
    return index_2c(code >> 3, b, f, s1, s2)


def _type_3(vectors: Tensor, code: Tensor, b: Tensor) -> Tensor:
    tables = _tables(vectors.device)
    p, code = (code >> 3) % 3, (code - FIRST_3 << 3) + b
    signed = vectors * tables.signs_3.index_select(1, code)
    total = signed
    for _ in range(3):
        total = total[0::2] + total[1::2]  # (3 bricks, N) at last
    brick = signed.view(3, 8, -1).gather(0, p.expand(1, 8, -1))[0]
    own = total.gather(0, p[None])[0]
    flip = 4 * brick.amax(0) - own > own - 4 * brick.amin(0)
    i = torch.where(flip, brick, -brick).max(0).indices
    sides = (tables.sides_3.index_select(1, p) * (total < 0)).sum(0)
    return index_3(code >> 3, b, flip * 4 + sides, i)


def _type_4(vectors: Tensor, code: Tensor, b: Tensor) -> Tensor:
    size = vectors.abs()
    first = size.max(0, keepdim=True).indices
    second = size.scatter_(0, first, -1.0).max(0, keepdim=True).indices
    places = torch.cat([torch.minimum(first, second), torch.maximum(first, second)])
    (i, j), (minus_i, minus_j) = places, vectors.gather(0, places) < 0
    return index_4(i, j, minus_i, minus_j)


Family = Callable[[Tensor, Tensor, Tensor], Tensor]
# Type 3 is the fourth; its vectors may be given in another order of coordinates.
_FAMILIES: tuple[Family, ...] = (_type_2a, _type_2b, _type_2c, _type_3, _type_4)
_LAST_CODES = (2, 41, FIRST_3 - 1, 359, 359)


def traceback_split(type2: Tensor, type3: Tensor, group: Tensor, code: Tensor, b: Tensor) -> Tensor:
    """`traceback` where each family's function sees its own vectors only."""
    group, order = group.sort()
    bounds = torch.tensor(BOUNDS, device=group.device)
    stops = [*torch.searchsorted(group, bounds).tolist(), len(group)]
    code, b = code[order], b[order]
    found, start = [], 0
    for number, (family, stop) in enumerate(zip(_FAMILIES, stops, strict=True)):
        if stop > start:
            vectors = type3 if number == 3 else type2
            part = slice(start, stop)
            found.append(family(vectors.index_select(1, order[part]), code[part], b[part]))
        start = stop
    return torch.empty_like(group).scatter_(0, order, torch.cat(found))


def traceback_all(type2: Tensor, type3: Tensor, group: Tensor, code: Tensor, b: Tensor) -> Tensor:
    """`traceback` where every function sees all vectors: more work, no word from the device."""
    indices = torch.empty_like(group)
    for number, (family, last) in enumerate(zip(_FAMILIES, _LAST_CODES, strict=True)):
        vectors, first = (type3, FIRST_3) if number == 3 else (type2, 0)
        found = family(vectors, code.clamp(first, last), b)
        indices = torch.where(group >= (0, *BOUNDS)[number], found, indices)
    return indices


def traceback(type2: Tensor, type3: Tensor, group: Tensor, code: Tensor, b: Tensor) -> Tensor:
    """Canonical indices `(N,)` of the best codes of vectors `(24, N)`.

    Args:
        type2: the vectors as types 2 and 4 see them.
        type3: the vectors as type 3 sees them.
        group: `(N,)` groups of codes.
        code: `(N,)` p for type 2a; `(7p + a-1)*2 + pi` for type 2b; `((x-1)*3 + p)*8 + c` for
            type 2c; `((x+7)*3 + p)*8 + c` for type 3.
        b: `(N,)` label of brick q1, for types 2c and 3.
    """
    how = traceback_split if group.device.type == "cpu" else traceback_all
    return how(type2, type3, group, code, b)

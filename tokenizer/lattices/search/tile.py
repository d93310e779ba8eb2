"""Scores of all groups of Leech codes for a tile of vectors: the eager search's arithmetic.

Vectors are last in every tensor, so that each operation runs along them. Every result is written
into one workspace through views made once: fresh temporaries would cost as much in page faults as
the arithmetic does, and slicing as much as the arithmetic of a small tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from lambda24.tokenizer.lattices import golay

# Groups of codes in canonical order: types 2a, 2b, 2c with x = 1..7, type 3 with x = 0..7, type 4.
NUM_GROUPS = 18
PAIRS, TETRADS, WORDS = 28, 35, 64  # of one brick, the last two modulo complement
LABELLED = 15  # values of x with eight labels: 7 of type 2c, 8 of type 3
NUM_SIDES, NUM_CENTRES = 2 * PAIRS + WORDS, 2 * TETRADS + WORDS
_SCRATCH = (3 * 27 + 3 * 8 + 8) * LABELLED


@dataclass(frozen=True)
class _Rows:
    """Row numbers that lay out the scores of three bricks, on one device."""

    pairs: Tensor  # (2 * 3 * 28,) coordinates of the pairs: first ones, second ones
    tetrads: Tensor  # (5 * 2 * 3 * 35,) scores of first pairs: plus, minus; of last ones: +, -, +
    sides: Tensor  # (3 * 27 * 15,) pairs and words; label bits are (0, 1, 0), so i + j is i ^ j
    centre: Tensor  # (3 * 8 * 15,) tetrads and words
    labels: Tensor  # (2 * 8, 15 * 24) rows of laid-out sides of q1 and q2, by b and by code


def _sign_grid() -> list[int]:
    """Brick words in the order in which `Tile` combines half-bricks."""
    words = []
    for half, p, s3, q, t0, t3 in product((0, 1), repeat=6):
        low = p << 1 | (s3 ^ half ^ p) << 2 | s3 << 3
        high = t0 | (t0 ^ q) << 1 | (t3 ^ half ^ q) << 2 | t3 << 3
        words.append(low | high << 4)
    return words


@lru_cache(maxsize=8)
def _rows(device: torch.device) -> _Rows:
    pairs = [(i, j) for i in range(8) for j in range(i + 1, 8)]
    grid = _sign_grid()
    words = [[grid.index(golay.brick_word(x, c)) for c in range(8)] for x in range(8)]
    tetrads = [(0, t) for t in range(7)] + [(x, t) for x in range(1, 8) for t in range(4)]
    bricks, labelled = range(3), range(LABELLED)

    def halves(first: int, sign: int) -> list[int]:
        rows = []
        for complemented, brick, (x, t) in product((0, 1), bricks, tetrads):
            places = golay.tetrad(x, t, complemented)
            pair = pairs.index((places[first], places[first + 1]))
            rows.append(NUM_SIDES * brick + PAIRS * sign + pair)
        return rows

    def side(x: int, c: int) -> int:
        if x < 7:
            return PAIRS * (c & 1) + pairs.index(golay.pair(x + 1, c >> 1))
        return 2 * PAIRS + words[x - 7][c]

    def centre(x: int, c: int) -> int:
        if x < 7:
            return TETRADS * (c & 1) + tetrads.index((x + 1, c >> 1))
        return 2 * TETRADS + words[x - 7][c]

    def laid_out(brick: int, x: int, a: int) -> int:
        return ((brick % 3 * 3 + (a >> 2)) * 9 + (a >> 1 & 1) * 3 + (a & 1)) * LABELLED + x

    doubled = [4 * (i & 1) + 2 * (j & 1) + (k & 1) for i, j, k in product(range(3), repeat=3)]
    codes = list(product(labelled, bricks, range(8)))
    first = [[laid_out(p + 1, x, b) for x, p, _ in codes] for b in range(8)]
    second = [[laid_out(p + 2, x, b ^ c) for x, p, c in codes] for b in range(8)]
    parts = (halves(0, 0), halves(0, 1), halves(2, 0), halves(2, 1), halves(2, 0))

    def index(rows: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(rows, device=device)

    return _Rows(
        pairs=index(
            [8 * brick + pair[end] for end in (0, 1) for brick in bricks for pair in pairs]
        ),
        tetrads=index([row for part in parts for row in part]),
        sides=index([NUM_SIDES * p + side(x, c) for p, c, x in product(bricks, doubled, labelled)]),
        centre=index(
            [NUM_CENTRES * p + centre(x, c) for p, c, x in product(bricks, range(8), labelled)]
        ),
        labels=index(first + second),
    )


class Tile:
    """Workspace of `size` vectors."""

    NUM_ROWS = 24 + 3 * (NUM_SIDES + NUM_CENTRES) + NUM_GROUPS + 24 * LABELLED + _SCRATCH

    def __init__(self, memory: Tensor) -> None:
        """Carves the workspace out of `memory` `(NUM_ROWS, size)`."""
        self.rows, self.memory, self.used = _rows(memory.device), memory, 0
        self.vectors = self._carve(24)
        self.sides = self._carve(3, NUM_SIDES)  # scores of a brick that plays q1 or q2
        self.centre = self._carve(3, NUM_CENTRES)  # ... that plays p
        self.groups = self._carve(NUM_GROUPS)
        self.codes = torch.empty(3, memory.shape[1], dtype=torch.int64, device=memory.device)
        self.laid_out_centre = self._carve(3, 2, 2, 2, LABELLED)
        # The stages use the rest in turn.
        scratch = self.used
        self._lay_out_type_2()
        self.used = scratch
        self._lay_out_words()
        self.used = scratch
        self._lay_out_convolution()

    def _carve(self, *shape: int) -> Tensor:
        rows = self.memory[self.used : self.used + math.prod(shape)]
        self.used += len(rows)
        return rows.view(*shape, -1)

    def _lay_out_type_2(self) -> None:
        self.doubled, self.ends = self._carve(24), self._carve(2, 3, PAIRS)
        self.plus, self.minus = self.sides[:, :PAIRS], self.sides[:, PAIRS : 2 * PAIRS]
        self.pairs = self.sides[:, : 2 * PAIRS]
        parts = self._carve(5, 2, 3, TETRADS)
        self.tetrad_parts = parts.flatten(0, 3)
        self.tetrads = self._carve(2, 2, 3, TETRADS)  # parity, complement, brick
        self.equal_signs, self.unlike_signs = (parts[0], parts[2:4]), (parts[1], parts[3:5])
        best = self.centre[:, : 2 * TETRADS].view(3, 2, TETRADS, -1)
        self.best_tetrads = best.transpose(0, 1)
        self.full_halves = self.tetrads[:, 0, :, 0], self.tetrads[:, 1, :, 0]
        # After the tetrads are done with, the sums of type 2b take the place of their parts.
        self.empty = parts.view(-1, self.memory.shape[1])[:42].view(3, 7, 2, -1)
        linear = best[:, :, :7].transpose(1, 2)
        self.empty_sides = [(linear[p - 2], linear[p - 1]) for p in range(3)]

    def _lay_out_words(self) -> None:
        self.signed = signed = self._carve(3, 2, 4, 4)  # z, -z, z, -z
        low, high, quads = (
            self._carve(3, 2, 2, 2),
            self._carve(3, 2, 3, 2),
            self._carve(3, 2, 2, 2, 2, 2),
        )
        self.least, self.most = self._carve(3, 2, 2, 2, 2, 2, 2), self._carve(3, 2, 2, 2, 2, 2, 2)
        self.sums = self.sides[:, 2 * PAIRS :].view(self.least.shape)
        self.best_words = self.centre[:, 2 * TETRADS :].view(self.least.shape)
        self.positive, self.negative = signed[:, :, :, 0::2], signed[:, :, :, 1::2]
        # low[p, s0]: coordinates 0, 1 with signs s0, s0 ^ p; high[k, s3]: 2, 3 with s3 ^ k, s3.
        second = signed[:, :, 1, :3].unfold(2, 2, 1).movedim(-1, 3)
        third = signed[:, :, 2].unfold(2, 2, 1).movedim(-1, 3)
        # quads[half parity, p, s0, s3]; the first half of a word has s0 = +.
        shifted = high.unfold(2, 2, 1).movedim(-1, 3)
        self.combined = (
            (signed[:, :, 0, None, :2], second, low),
            (third, signed[:, :, 3, None, :2], high),
            (low[:, :, None, :, :, None], shifted[:, :, :, :, None], quads),
        )
        self.halves = (
            quads[:, 0, :, :, 0][:, :, :, :, None, None, None],
            quads[:, 1][:, :, None, None],
        )

    def _lay_out_convolution(self) -> None:
        labels = self._carve(3, 3, 3, 3, LABELLED)
        self.laid_out = labels.flatten(0, 4)
        self.total, self.sum = self._carve(3, 2, 2, 2, LABELLED), self._carve(2, 2, 2, LABELLED)
        self.terms = [
            [
                (
                    labels[(p + 1) % 3, i : i + 1, j : j + 1, k : k + 1],
                    labels[(p + 2) % 3, i : i + 2, j : j + 2, k : k + 2],
                )
                for i, j, k in product((0, 1), repeat=3)
            ]
            for p in range(3)
        ]
        self.totals = list(zip(self.total, self.terms, strict=True))

    def _score_type_2(self) -> None:
        torch.mul(self.vectors, 2, out=self.doubled)
        torch.index_select(self.doubled, 0, self.rows.pairs, out=self.ends.flatten(0, 2))
        torch.add(*self.ends, out=self.plus)
        torch.sub(*self.ends, out=self.minus)
        torch.abs(self.pairs, out=self.pairs)
        # Best signs of a tetrad of parity pi: max over s of pair score s (01) + score s ^ pi (23).
        torch.index_select(self.sides.flatten(0, 1), 0, self.rows.tetrads, out=self.tetrad_parts)
        torch.add(*self.equal_signs, out=self.tetrads)
        torch.add(*self.unlike_signs, out=self.unlike_signs[1])
        torch.maximum(self.tetrads, self.unlike_signs[1], out=self.tetrads)
        torch.maximum(self.tetrads[:, 0], self.tetrads[:, 1], out=self.best_tetrads)
        # A full brick: a tetrad and its complement, both even or both odd.
        full = torch.add(*self.full_halves).amax(0)
        torch.max(full, 0, out=(self.groups[0], self.codes[0]))
        for sums, sides in zip(self.empty, self.empty_sides, strict=True):
            torch.add(*sides, out=sums)
        torch.max(self.empty.flatten(0, 2), 0, out=(self.groups[1], self.codes[1]))
        # Type 4: the two largest coordinates share a brick or not.
        inside = self.pairs.amax(1).amax(0)  # 2 |z_i| + 2 |z_j|
        largest = self.doubled.view(3, 8, -1).abs().amax(1)
        across = (largest + largest.roll(1, 0)).amax(0)
        torch.mul(torch.maximum(inside, across), 2, out=self.groups[17])

    def _combine(self, op: Callable[..., Tensor], out: Tensor) -> None:
        """Reduces the eight signed coordinates of all 64 brick words with an associative `op`."""
        for first, second, result in self.combined:
            op(first, second, out=result)
        op(*self.halves, out=out)

    def _score_words(self) -> None:
        sums, least, most = self.sums, self.least, self.most
        self.positive.copy_(self.vectors.view(3, 2, 4, 1, -1))
        torch.neg(self.positive, out=self.negative)
        self._combine(torch.add, sums)
        torch.mul(self.signed, 4, out=self.signed)
        self._combine(torch.minimum, least)
        self._combine(torch.maximum, most)
        # The word Y, or its complement, with one coordinate times -3: Y - 4 min, or 4 max - Y.
        torch.sub(sums, least, out=least)
        torch.sub(most, sums, out=most)
        torch.abs(sums, out=sums)
        torch.maximum(least, most, out=self.best_words)

    def _convolve(self) -> None:
        torch.index_select(self.sides.flatten(0, 1), 0, self.rows.sides, out=self.laid_out)
        for total, terms in self.totals:
            torch.add(*terms[0], out=total)
            for left, right in terms[1:]:
                torch.add(left, right, out=self.sum)
                torch.maximum(total, self.sum, out=total)
        centre = self.laid_out_centre
        torch.index_select(self.centre.flatten(0, 1), 0, self.rows.centre, out=centre.flatten(0, 4))
        torch.add(self.total, centre, out=self.total)
        torch.amax(self.total.view(24, -1), 0, out=self.groups[2:17].view(-1))

    def decide(self, type2: Tensor, type3: Tensor, first: int, stop: int, out: Tensor) -> None:
        """Writes group, code and label b of the best codes in groups [first, stop) to `out`.

        Args:
            type2: the vectors `(24, size)` as types 2 and 4 see them.
            type3: the vectors as type 3 sees them.
            out: `(3, size)` int64, for `traceback`.
        """
        self.vectors.copy_(type2)
        self._score_type_2()
        if type3 is not type2:
            self.vectors.copy_(type3)
        self._score_words()
        self._convolve()
        group, code, b = out
        torch.add(self.groups[first:stop].max(0).indices, first, out=group)
        row = (group - 2).clamp_(0, LABELLED - 1)
        total = self.total.view(24, LABELLED, -1).gather(1, row.expand(24, 1, -1))[:, 0]
        torch.add(total.max(0).indices, row, alpha=24, out=self.codes[2])
        sides = self.laid_out.gather(0, self.rows.labels.index_select(1, self.codes[2]))
        torch.gather(self.codes, 0, group.clamp(max=2)[None], out=code[None])
        b.copy_((sides[:8] + sides[8:]).max(0).indices)

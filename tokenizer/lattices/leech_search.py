"""Exact nearest minimal vector of the Leech lattice: a three-brick max-plus search.

The largest inner product over all codes is a (max, +) convolution over F2^3 of per-brick scores:
about 10,000 additions and maxima a vector instead of 196,560 dot products. A tile of vectors is
scored vectors last (`_Tile`), which finds each vector's group of codes and the label of brick p; a
traceback then rebuilds the other labels and the signs from the vector alone (`leech_traceback`).
Only additions, maxima and copies of rows are used: neither autocast nor TF32 can change a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from tokenizer.lattices import golay
from tokenizer.lattices.leech_traceback import traceback

# Groups of codes in canonical order: types 2a, 2b, 2c with x = 1..7, type 3 with x = 0..7, type 4.
NUM_GROUPS = 18
GROUPS_OF_TYPE = {2: (0, 9), 3: (9, 17), 4: (17, 18)}

PAIRS, TETRADS, WORDS = 28, 35, 64  # of one brick, the last two modulo complement
LABELLED = 15  # values of x with eight labels: 7 of type 2c, 8 of type 3

TILE_CPU, BLOCK_CPU = 768, 8192  # a tile's workspace is 9 MB
BLOCK_CUDA = 32768


@dataclass(frozen=True)
class _Rows:
    """Row numbers that lay out the scores of three bricks, on one device."""

    pair_first: Tensor  # (3 * 28,) coordinates of the pairs, brick after brick
    pair_second: Tensor
    tetrad_first: Tensor  # (2 * 3 * 35 * 2,) scores of the first two coordinates: plus, minus
    tetrad_second: Tensor  # (2 * 3 * 35 * 3,) of the last two: plus, minus, plus
    sides: Tensor  # (3 * 27 * 15,) pairs and words; label bits are (0, 1, 0), so i + j is i ^ j
    centre: Tensor  # (3 * 8 * 15,) tetrads and words


def _sign_grid() -> list[int]:
    """Brick words in the order in which `_Tile` combines half-bricks."""
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
    num_sides, num_centres = 2 * PAIRS + WORDS, 2 * TETRADS + WORDS

    def halves(first: int, signs: tuple[int, ...]) -> list[int]:
        rows = []
        for complemented, brick, (x, t), sign in product((0, 1), bricks, tetrads, signs):
            places = golay.tetrad(x, t, complemented)
            pair = pairs.index((places[first], places[first + 1]))
            rows.append(brick * num_sides + sign * PAIRS + pair)
        return rows

    def side(x: int, c: int) -> int:
        if x < 7:
            return (c & 1) * PAIRS + pairs.index(golay.pair(x + 1, c >> 1))
        return 2 * PAIRS + words[x - 7][c]

    def centre(x: int, c: int) -> int:
        if x < 7:
            return 2 * tetrads.index((x + 1, c >> 1)) + (c & 1)
        return 2 * TETRADS + words[x - 7][c]

    def index(values: list[int]) -> Tensor:
        return torch.tensor(values, device=device)

    doubled = [4 * (i & 1) + 2 * (j & 1) + (k & 1) for i, j, k in product(range(3), repeat=3)]
    return _Rows(
        pair_first=index([8 * brick + i for brick in bricks for i, _ in pairs]),
        pair_second=index([8 * brick + j for brick in bricks for _, j in pairs]),
        tetrad_first=index(halves(0, (0, 1))),
        tetrad_second=index(halves(2, (0, 1, 0))),
        sides=index([num_sides * p + side(x, c) for p, c, x in product(bricks, doubled, labelled)]),
        centre=index(
            [num_centres * p + centre(x, c) for p, c, x in product(bricks, range(8), labelled)]
        ),
    )


class _Tile:
    """Workspace of `size` vectors; every large result is written into it.

    Fresh temporaries of this size would cost as much in page faults as the arithmetic does.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(*shape, size, dtype=dtype, device=device)

        self.rows, self.size = _rows(device), size
        self.sides = empty(3, 2 * PAIRS + WORDS)  # scores of a brick that plays q1 or q2
        self.centre = empty(3, 2 * TETRADS + WORDS)  # ... that plays p
        self.centre_labels = empty(3, 8, LABELLED)
        self.groups = empty(NUM_GROUPS)
        # The three stages use one piece of memory in turn.
        scratch = empty(3 * 27 * LABELLED + 3 * 8 * LABELLED + 8 * LABELLED)

        def carve(*shapes: tuple[int, ...]) -> list[Tensor]:
            counts = [math.prod(shape) for shape in shapes]
            parts = scratch[: sum(counts)].split(counts)
            return [part.view(*shape, size) for part, shape in zip(parts, shapes, strict=True)]

        self.doubled, self.pair_first, self.pair_second = carve((24,), (84,), (84,))
        _, self.tetrad_first, self.tetrad_second, self.tetrads = carve(
            (24,), (2, 3, TETRADS, 2), (2, 3, TETRADS, 3), (2, 3, TETRADS, 2)
        )
        self.signed, self.low, self.high, self.quads, self.least, self.most = carve(
            (3, 2, 4, 4),
            (3, 2, 2, 2),
            (3, 2, 3, 2),
            (3, 2, 2, 2, 2, 2),
            (3, 2, 2, 2, 2, 2, 2),
            (3, 2, 2, 2, 2, 2, 2),
        )
        self.labels, self.total, self.sum = carve(
            (3, 3, 3, 3, LABELLED), (3, 2, 2, 2, LABELLED), (2, 2, 2, LABELLED)
        )
        # Views made once: slicing costs as much as a tile's arithmetic.
        self.terms = [
            [
                (
                    self.labels[(p + 1) % 3, i : i + 1, j : j + 1, k : k + 1],
                    self.labels[(p + 2) % 3, i : i + 2, j : j + 2, k : k + 2],
                )
                for i, j, k in product((0, 1), repeat=3)
            ]
            for p in range(3)
        ]

    def _score_pairs_and_tetrads(self, z: Tensor) -> None:
        rows, pairs = self.rows, self.sides[:, : 2 * PAIRS]
        torch.mul(z, 2, out=self.doubled)
        torch.index_select(self.doubled, 0, rows.pair_first, out=self.pair_first)
        torch.index_select(self.doubled, 0, rows.pair_second, out=self.pair_second)
        first, second = self.pair_first.view(3, 28, -1), self.pair_second.view(3, 28, -1)
        torch.add(first, second, out=pairs[:, :PAIRS])
        torch.sub(first, second, out=pairs[:, PAIRS:])
        torch.abs(pairs, out=pairs)
        # Best signs of a tetrad of parity pi: max over s of pair score s (01) + score s ^ pi (23).
        sides = self.sides.view(-1, self.size)
        first, second, tetrads = self.tetrad_first, self.tetrad_second, self.tetrads
        torch.index_select(sides, 0, rows.tetrad_first, out=first.view(-1, self.size))
        torch.index_select(sides, 0, rows.tetrad_second, out=second.view(-1, self.size))
        even, odd = second[:, :, :, :2], second[:, :, :, 1:]
        torch.add(first[:, :, :, :1], even, out=tetrads)
        torch.add(first[:, :, :, 1:], odd, out=odd)
        torch.maximum(tetrads, odd, out=tetrads)
        best = self.centre[:, : 2 * TETRADS].view(3, TETRADS, 2, -1)
        torch.maximum(tetrads[0], tetrads[1], out=best)
        # A full brick: a tetrad and its complement, both even or both odd.
        full = tetrads[0, :, 0] + tetrads[1, :, 0]
        torch.amax(full.view(6, -1), 0, out=self.groups[0])

    def _combine(self, op: Callable[..., Tensor], out: Tensor) -> None:
        """Reduces the eight signed coordinates of all 64 brick words with an associative `op`."""
        signed = self.signed
        # low[p, s0]: coordinates 0, 1 with signs s0, s0 ^ p; high[k, s3]: 2, 3 with s3 ^ k, s3.
        shifted = signed[:, :, 1, :3].unfold(2, 2, 1).movedim(-1, 3)
        op(signed[:, :, 0, None, :2], shifted, out=self.low)
        shifted = signed[:, :, 2].unfold(2, 2, 1).movedim(-1, 3)
        op(shifted, signed[:, :, 3, None, :2], out=self.high)
        # quads[half parity, p, s0, s3]; the first half of a word has s0 = +.
        shifted = self.high.unfold(2, 2, 1).movedim(-1, 3)
        op(self.low[:, :, None, :, :, None], shifted[:, :, :, :, None], out=self.quads)
        first, second = self.quads[:, 0, :, :, 0], self.quads[:, 1]
        op(first[:, :, :, :, None, None, None], second[:, :, None, None], out=out)

    def _score_words(self, z: Tensor) -> None:
        signed, least, most = self.signed, self.least, self.most
        signed[:, :, :, 0::2] = z.view(3, 2, 4, 1, -1)
        torch.neg(signed[:, :, :, 0::2], out=signed[:, :, :, 1::2])
        sums = self.sides[:, 2 * PAIRS :].view(3, 2, 2, 2, 2, 2, 2, -1)
        self._combine(torch.add, sums)
        torch.mul(signed, 4, out=signed)
        self._combine(torch.minimum, least)
        self._combine(torch.maximum, most)
        # The word Y, or its complement, with one coordinate times -3: Y - 4 min, or 4 max - Y.
        torch.sub(sums, least, out=least)
        torch.sub(most, sums, out=most)
        torch.abs(sums, out=sums)
        torch.maximum(least, most, out=self.centre[:, 2 * TETRADS :].view(sums.shape))

    def _convolve(self) -> None:
        sides, centre = self.sides.view(-1, self.size), self.centre.view(-1, self.size)
        torch.index_select(sides, 0, self.rows.sides, out=self.labels.view(-1, self.size))
        torch.index_select(centre, 0, self.rows.centre, out=self.centre_labels.view(-1, self.size))
        for total, terms in zip(self.total, self.terms, strict=True):
            torch.add(*terms[0], out=total)
            for left, right in terms[1:]:
                torch.add(left, right, out=self.sum)
                torch.maximum(total, self.sum, out=total)
        torch.add(self.total, self.centre_labels.view(self.total.shape), out=self.total)

    def _score_groups(self, z: Tensor) -> None:
        groups, two = self.groups, self.centre[:, :14]  # tetrads of x = 0
        two = torch.maximum(torch.maximum(two[0] + two[1], two[1] + two[2]), two[2] + two[0])
        torch.amax(two, 0, out=groups[1])
        torch.amax(self.total.view(24, -1), 0, out=groups[2:17].view(-1))
        inside = self.sides[:, : 2 * PAIRS].amax(1).amax(0)  # 2 |z_i| + 2 |z_j| of one brick
        largest = z.abs().view(3, 8, -1).amax(1)
        across = (largest + largest.roll(1, 0)).amax(0)
        torch.maximum(2 * inside, 4 * across, out=groups[17])

    def decide(self, type2: Tensor, type3: Tensor, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """Best of the groups [first, stop), and within it `8 p + c` (only of labelled groups).

        Args:
            type2: the vectors `(24, T)` as types 2 and 4 see them.
            type3: the vectors `(24, T)` as type 3 sees them.
        """
        self._score_pairs_and_tetrads(type2)
        self._score_words(type3)
        self._convolve()
        self._score_groups(type2)
        group = self.groups[first:stop].max(0).indices + first
        row = (group - 2).clamp(0, LABELLED - 1)
        total = self.total.view(24, LABELLED, -1).gather(1, row.expand(24, 1, -1))[:, 0]
        return group, total.max(0).indices


def search(
    type2: Tensor, type3: Tensor, groups: tuple[int, int], chunk_size: int | None = None
) -> Tensor:
    """Canonical indices `(N,)` of the nearest codes among `groups`, lowest index on ties.

    Args:
        type2: `(N, 24)` float32 or float64, finite; scored against types 2 and 4.
        type3: the vectors as type 3 sees them (coordinates in another order, or the same tensor).
        groups: first and last + 1 of the groups that take part, see `GROUPS_OF_TYPE`.
        chunk_size: vectors in flight at once; bounds the memory.
    """
    count, device = len(type2), type2.device
    on_cpu = device.type == "cpu"
    block = min(chunk_size or (BLOCK_CPU if on_cpu else BLOCK_CUDA), count)
    indices = torch.empty(count, dtype=torch.int64, device=device)
    if count == 0:
        return indices
    num_tiles = -(-block // TILE_CPU) if on_cpu else 1
    size = -(-block // num_tiles)
    tile = _Tile(size, type2.dtype, device)
    group = torch.empty(block, dtype=torch.int64, device=device)
    label = torch.empty_like(group)
    # Last tiles and blocks overlap their neighbours, so that all have one size.
    for start in range(0, count, block):
        rows = slice(min(start, count - block), min(start + block, count))
        across2 = type2[rows].t().contiguous()
        across3 = across2 if type3 is type2 else type3[rows].t().contiguous()
        for tile_start in range(0, block, size):
            part = slice(min(tile_start, block - size), min(tile_start + size, block))
            group[part], label[part] = tile.decide(across2[:, part], across3[:, part], *groups)
        indices[rows] = traceback(across2, across3, group, label)
    return indices

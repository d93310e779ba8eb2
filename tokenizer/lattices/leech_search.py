"""Exact nearest minimal vector of the Leech lattice: a three-brick max-plus search.

The largest inner product over all codes is a (max, +) convolution over F2^3 of per-brick scores: about
10,000 additions and maxima a vector instead of 196,560 dot products. A tile of vectors is scored vectors
last (`_Tile`), which finds each vector's group of codes and the label of brick p; a traceback then
rebuilds the other labels and the signs from the vector alone (`leech_traceback`). Only additions, maxima
and copies of rows are used, so neither autocast nor TF32 can change a result.
"""

from __future__ import annotations

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

NUM_PAIRS, NUM_TETRADS, NUM_WORDS = 28, 35, 64  # of one brick, the last two modulo complement
NUM_LABELLED = 15  # values of x with eight labels: 7 of type 2c, 8 of type 3

TILE_CPU, BLOCK_CPU = 256, 8192  # a tile's workspace fits the L2 cache
BLOCK_CUDA = 32768


@dataclass(frozen=True)
class _Rows:
    """Row numbers that lay out the scores of three bricks, on one device."""

    pair_first: Tensor  # (84,) coordinates of the pairs, brick after brick
    pair_second: Tensor
    tetrad_first: Tensor  # (2, 3, 35, 2) scores of the first two coordinates: plus, minus
    tetrad_second: Tensor  # (2, 3, 35, 3) of the last two: plus, minus, plus
    words: Tensor  # (64,) place in the sign grid of brick word (x, a)
    labels: Tensor  # (3, 15, 27) scores by label; every bit doubled to (0, 1, 0): i + j reads as i ^ j


def _sign_grid() -> list[int]:
    """Brick words in the order in which `_Tile` combines half-bricks: bits s0..s3 of each half."""
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
    words = [grid.index(golay.brick_word(x, a)) for x in range(8) for a in range(8)]
    tetrads = [(0, t) for t in range(7)] + [(x, t) for x in range(1, 8) for t in range(4)]
    scores = 2 * NUM_PAIRS + NUM_WORDS  # rows of one brick: pairs plus, pairs minus, words

    def halves(part: slice, signs: tuple[int, ...]) -> list[int]:
        return [
            brick * scores + sign * NUM_PAIRS + pairs.index(golay.tetrad(x, t, complemented)[part])
            for complemented in (0, 1)
            for brick in range(3)
            for x, t in tetrads
            for sign in signs
        ]

    label = [
        [(c & 1) * NUM_PAIRS + pairs.index(golay.pair(x, c >> 1)) for c in range(8)]
        for x in range(1, 8)
    ] + [[2 * NUM_PAIRS + words[8 * x + c] for c in range(8)] for x in range(8)]
    doubled = [4 * (i & 1) + 2 * (j & 1) + (k & 1) for i, j, k in product(range(3), repeat=3)]
    labels = [
        brick * scores + row[c] for brick in range(3) for row in label for c in doubled
    ]

    def index(values: list[int]) -> Tensor:
        return torch.tensor(values, device=device)

    return _Rows(
        pair_first=index([8 * brick + i for brick in range(3) for i, _ in pairs]),
        pair_second=index([8 * brick + j for brick in range(3) for _, j in pairs]),
        tetrad_first=index(halves(slice(0, 2), (0, 1))),
        tetrad_second=index(halves(slice(2, 4), (0, 1, 0))),
        words=index(words),
        labels=index(labels),
    )


class _Tile:
    """Workspace of `size` vectors; every large result is written into it.

    Fresh temporaries of this size would cost as much in page faults as the arithmetic.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(*shape, size, dtype=dtype, device=device)

        self.rows = _rows(device)
        self.size = size
        self.type2, self.type3 = empty(3, 8), empty(3, 8)
        self.signed = empty(3, 2, 4, 4)
        self.pair_first, self.pair_second = empty(84), empty(84)
        self.scores = empty(3, 2 * NUM_PAIRS + NUM_WORDS)
        self.tetrad_first = empty(2 * 3 * NUM_TETRADS * 2)
        self.tetrad_second = empty(2 * 3 * NUM_TETRADS * 3)
        self.tetrads, self.tetrads_other = empty(2, 3, NUM_TETRADS, 2), empty(2, 3, NUM_TETRADS, 2)
        self.low, self.high, self.quads = empty(3, 2, 2, 2), empty(3, 2, 3, 2), empty(3, 2, 2, 2, 2, 2)
        self.sums, self.least, self.most = (empty(3, 2, 2, 2, 2, 2, 2) for _ in range(3))
        # Scores of brick p by class: tetrads of x = 0, tetrads of x = 1..7, words of x = 0..7.
        self.centre = empty(3, 2 * NUM_TETRADS + NUM_WORDS)
        self.labels = empty(3 * NUM_LABELLED * 27)
        self.sum = empty(NUM_LABELLED, 2, 2, 2)
        self.total = empty(NUM_LABELLED, 3, 2, 2, 2)
        self.groups = empty(NUM_GROUPS)

    def load(self, type2: Tensor, type3: Tensor) -> None:
        """Takes the vectors `(T, 24)` as types 2 and 4 see them, and as type 3 sees them."""
        self.type2.view(24, -1).copy_(type2.t())
        self.type3.view(24, -1).copy_(type3.t())

    def _pairs_and_tetrads(self) -> None:
        pairs, rows = self.scores[:, : 2 * NUM_PAIRS], self.rows
        doubled = torch.mul(self.type2, 2).view(24, -1)
        torch.index_select(doubled, 0, rows.pair_first, out=self.pair_first)
        torch.index_select(doubled, 0, rows.pair_second, out=self.pair_second)
        first, second = self.pair_first.view(3, 28, -1), self.pair_second.view(3, 28, -1)
        torch.add(first, second, out=pairs[:, :NUM_PAIRS])
        torch.sub(first, second, out=pairs[:, NUM_PAIRS:])
        torch.abs(pairs, out=pairs)
        # Best signs of a tetrad, parity pi: max over parities s of score_s(01) + score_{s ^ pi}(23).
        flat = self.scores.view(-1, self.size)
        torch.index_select(flat, 0, rows.tetrad_first, out=self.tetrad_first)
        torch.index_select(flat, 0, rows.tetrad_second, out=self.tetrad_second)
        first = self.tetrad_first.view(2, 3, NUM_TETRADS, 2, -1)
        second = self.tetrad_second.view(2, 3, NUM_TETRADS, 3, -1)
        torch.add(first[:, :, :, :1], second[:, :, :, :2], out=self.tetrads)
        torch.add(first[:, :, :, 1:], second[:, :, :, 1:], out=self.tetrads_other)
        torch.maximum(self.tetrads, self.tetrads_other, out=self.tetrads)
        best = self.centre[:, : 2 * NUM_TETRADS].view(3, NUM_TETRADS, 2, -1)
        torch.maximum(self.tetrads[0], self.tetrads[1], out=best)

    def _combine(self, op, out: Tensor) -> None:  # type: ignore[no-untyped-def]
        """Reduces the eight signed coordinates of all 64 brick words with an associative `op`."""
        signed = self.signed
        # [p, s0] = z0 op z1 with signs s0, s0 ^ p; [k, s3] = z2 op z3 with signs s3 ^ k, s3.
        shifted = signed[:, :, 1, :3].unfold(2, 2, 1).movedim(-1, 3)
        op(signed[:, :, 0, None, :2], shifted, out=self.low)
        shifted = signed[:, :, 2].unfold(2, 2, 1).movedim(-1, 3)
        op(shifted, signed[:, :, 3, None, :2], out=self.high)
        # [half parity, p, s0, s3]
        shifted = self.high.unfold(2, 2, 1).movedim(-1, 3)
        op(self.low[:, :, None, :, :, None], shifted[:, :, :, :, None], out=self.quads)
        low, high = self.quads[:, 0, :, :, 0], self.quads[:, 1]
        op(low[:, :, :, :, None, None, None], high[:, :, None, None], out=out)

    def _words(self) -> None:
        signed, z = self.signed, self.type3.view(3, 2, 4, -1)
        signed[:, :, :, 0::2] = z[:, :, :, None]
        torch.neg(signed[:, :, :, 0::2], out=signed[:, :, :, 1::2])
        self._combine(torch.add, self.sums)
        torch.mul(signed, 4, out=signed)
        self._combine(torch.minimum, self.least)
        self._combine(torch.maximum, self.most)
        # The word, or its complement, with one coordinate times -3: Y - 4 min, or 4 max - Y.
        torch.sub(self.sums, self.least, out=self.least)
        torch.sub(self.most, self.sums, out=self.most)
        torch.maximum(self.least, self.most, out=self.most)
        sums, most = self.sums.view(3, NUM_WORDS, -1), self.most.view(3, NUM_WORDS, -1)
        torch.abs(sums, out=self.scores[:, 2 * NUM_PAIRS :])
        for brick in range(3):
            out = self.centre[brick, 2 * NUM_TETRADS :]
            torch.index_select(most[brick], 0, self.rows.words, out=out)

    def _convolve(self) -> None:
        flat = self.scores.view(-1, self.size)
        torch.index_select(flat, 0, self.rows.labels, out=self.labels)
        labels = self.labels.view(3, NUM_LABELLED, 3, 3, 3, -1)
        for p in range(3):
            first, second = labels[(p + 1) % 3], labels[(p + 2) % 3]
            total = self.total[:, p]
            for number, (i, j, k) in enumerate(product((0, 1), repeat=3)):
                left = first[:, i : i + 1, j : j + 1, k : k + 1]
                right = second[:, i : i + 2, j : j + 2, k : k + 2]
                torch.add(left, right, out=self.sum if number else total)
                if number:
                    torch.maximum(total, self.sum, out=total)
            centre = self.centre[p, 14:].view(NUM_LABELLED, 2, 2, 2, -1)
            torch.add(total, centre, out=total)

    def _groups(self) -> None:
        groups, size = self.groups, self.size
        whole = self.tetrads[0, :, 0] + self.tetrads[1, :, 0]  # both halves even, or both odd
        torch.amax(whole.view(6, size), 0, out=groups[0])
        tetrads = self.centre[:, :14]
        two = torch.cat([tetrads[0] + tetrads[1], tetrads[1] + tetrads[2], tetrads[2] + tetrads[0]])
        torch.amax(two, 0, out=groups[1])
        torch.amax(self.total.view(NUM_LABELLED, 24, size), 1, out=groups[2:17])
        inside = self.scores[:, : 2 * NUM_PAIRS].amax(1).amax(0)
        largest = 2 * self.type2.abs().amax(1)
        across = torch.maximum(largest[0], largest[1]) + largest[2]
        across = torch.maximum(across, largest[0] + largest[1])
        torch.mul(torch.maximum(inside, across), 2, out=groups[17])

    def decide(self, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """Best of the groups [first, stop), and within it `8 p + c` (only of labelled groups)."""
        self._pairs_and_tetrads()
        self._words()
        self._convolve()
        self._groups()
        group = self.groups[first:stop].argmax(0) + first
        row = (group - 2).clamp(0, NUM_LABELLED - 1)
        total = self.total.view(NUM_LABELLED, 24, self.size)
        chosen = total.gather(0, row.expand(1, 24, -1))[0]
        return group, chosen.argmax(0)


def search(
    type2: Tensor, type3: Tensor, groups: tuple[int, int], chunk_size: int | None = None
) -> Tensor:
    """Canonical indices `(N,)` of the nearest codes among `groups`, lowest index on ties.

    Args:
        type2: `(N, 24)` float32 or float64, finite; scored against types 2 and 4.
        type3: the same vectors as type 3 sees them (other coordinates' order, or the same tensor).
        groups: first and last + 1 of the groups that take part, see `GROUPS_OF_TYPE`.
        chunk_size: vectors in flight at once; bounds the memory.
    """
    count, device = len(type2), type2.device
    on_cpu = device.type == "cpu"
    block = min(chunk_size or (BLOCK_CPU if on_cpu else BLOCK_CUDA), count)
    tile_size = min(block, TILE_CPU) if on_cpu else block
    indices = torch.empty(count, dtype=torch.int64, device=device)
    if count == 0:
        return indices
    tile = _Tile(tile_size, type2.dtype, device)
    group = torch.empty(block, dtype=torch.int64, device=device)
    label = torch.empty_like(group)
    for block_start in range(0, count, block):
        stop = min(block_start + block, count)
        start = max(stop - block, 0)  # the last block overlaps: all blocks have one size
        for tile_start in range(0, block, tile_size):
            offset = min(tile_start, block - tile_size)
            rows = slice(start + offset, start + offset + tile_size)
            tile.load(type2[rows], type3[rows])
            within = slice(offset, offset + tile_size)
            group[within], label[within] = tile.decide(*groups)
        indices[start:stop] = traceback(type2[start:stop], type3[start:stop], group, label)
    return indices

"""Scores of all groups of Leech codes, compiled: sixteen vectors at a time, one per SIMD lane.

The same additions and maxima as in `leech_tile`, paired in the same order. The workspace is a flat
float32 array whose rows (`lanes`) are named below. Needs numba (extra `fast`).
"""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import Any

import numba
import numpy as np

from lambda24.tokenizer.lattices import golay
from lambda24.tokenizer.lattices.search.simd import (
    absolute,
    add,
    constant,
    integer,
    load,
    maximum,
    minimum,
    multiply,
    store,
    subtract,
    where_greater,
)

compiled = partial(numba.njit, nogil=True, error_model="numpy")

Floats = Any  # sixteen of them, see `lanes`; known to the compiler only

_PAIRS = list(combinations(range(8), 2))
_TETRADS = [(0, t) for t in range(7)] + [(x, t) for x in range(1, 8) for t in range(4)]
PAIR_PLACES = np.array(_PAIRS)
# (35 classes, 2 complements, 4) coordinates, and (35, 2, 2) the pairs of the first and last two.
TETRAD_PLACES = np.array([[golay.tetrad(x, t, h) for h in (0, 1)] for x, t in _TETRADS])
TETRAD_PAIRS = np.array(
    [
        [[_PAIRS.index((i, j)), _PAIRS.index((k, m))] for i, j, k, m in halves]
        for halves in TETRAD_PLACES
    ]
)
SIDE_PAIRS = np.array([[_PAIRS.index(golay.pair(x, t)) for t in range(4)] for x in range(1, 8)])
WORDS = np.array([[golay.brick_word(x, a) for a in range(8)] for x in range(8)])

# Rows of the workspace of sixteen vectors. Vectors are doubled for types 2 and 4.
DOUBLED, VECTORS = 0, 24
PAIRS = 48  # (3 bricks, plus or minus, 28): 2 |z_i ± z_j|
SIGNED = PAIRS + 3 * 56  # (8, 2): one brick's coordinates and their negatives
HALVES = SIGNED + 16  # (2 halves, sum or 4 min or 4 max, 16 signs): of one brick
SIDES = HALVES + 96  # (3 bricks, 15 x, 8 labels): scores of a brick that plays q1 or q2
CENTRE = SIDES + 360  # ... that plays p
EMPTY = CENTRE + 360  # (3 bricks, 14): tetrads of x = 0
FULL = EMPTY + 42  # (3,)
NUM_ROWS = FULL + 3

# Numbers of winners in canonical order: types 2a, 2b, (x, p, c) of types 2c and 3, type 4.
TYPE_2B, LABELLED, TYPE_3, TYPE_4 = 1, 2, 2 + 168, 2 + 360


@compiled()
def _best_signs(rows: np.ndarray, plus: int, first: int, second: int, odd: int) -> Floats:
    """Scores of a tetrad of two pairs whose number of minus signs is even or odd."""
    equal = add(load(rows, plus + first), load(rows, plus + 28 * odd + second))
    unlike = add(load(rows, plus + 28 + first), load(rows, plus + 28 - 28 * odd + second))
    return maximum(equal, unlike)


@compiled()
def score_type_2(rows: np.ndarray, brick: int) -> None:
    plus, z = PAIRS + 56 * brick, DOUBLED + 8 * brick
    for pair in range(28):
        first, second = load(rows, z + PAIR_PLACES[pair, 0]), load(rows, z + PAIR_PLACES[pair, 1])
        store(rows, plus + pair, absolute(add(first, second)))
        store(rows, plus + 28 + pair, absolute(subtract(first, second)))
    for t in range(35):
        for odd in range(2):
            first = _best_signs(rows, plus, TETRAD_PAIRS[t, 0, 0], TETRAD_PAIRS[t, 0, 1], odd)
            second = _best_signs(rows, plus, TETRAD_PAIRS[t, 1, 0], TETRAD_PAIRS[t, 1, 1], odd)
            best = maximum(first, second)
            if t < 7:
                store(rows, EMPTY + 14 * brick + 2 * t + odd, best)
            else:
                store(rows, CENTRE + 120 * brick + 2 * (t - 7) + odd, best)
            if t == 0 and odd == 0:
                store(rows, FULL + brick, add(first, second))
            elif t == 0:
                store(rows, FULL + brick, maximum(load(rows, FULL + brick), add(first, second)))
    for x in range(7):
        for c in range(8):
            pair = plus + 28 * (c & 1) + SIDE_PAIRS[x, c >> 1]
            store(rows, SIDES + 120 * brick + 8 * x + c, load(rows, pair))


@compiled()
def _score_halves(rows: np.ndarray, half: int) -> None:
    """Sums, four times minima and four times maxima of four coordinates with all signs."""
    four = constant(np.float32(4))
    z, out = SIGNED + 8 * half, HALVES + 48 * half
    for signs in range(16):
        a, b = load(rows, z + (signs & 1)), load(rows, z + 2 + (signs >> 1 & 1))
        c, d = load(rows, z + 4 + (signs >> 2 & 1)), load(rows, z + 6 + (signs >> 3))
        store(rows, out + signs, add(add(a, b), add(c, d)))
        least = minimum(minimum(a, b), minimum(c, d))
        most = maximum(maximum(a, b), maximum(c, d))
        store(rows, out + 16 + signs, multiply(four, least))
        store(rows, out + 32 + signs, multiply(four, most))


@compiled()
def score_type_3(rows: np.ndarray, brick: int) -> None:
    zero = constant(np.float32(0))
    for k in range(8):
        z = load(rows, VECTORS + 8 * brick + k)
        store(rows, SIGNED + 2 * k, z)
        store(rows, SIGNED + 2 * k + 1, subtract(zero, z))
    _score_halves(rows, 0)
    _score_halves(rows, 1)
    for x in range(8):
        for c in range(8):
            low, high = HALVES + (WORDS[x, c] & 15), HALVES + 48 + (WORDS[x, c] >> 4)
            total = add(load(rows, low), load(rows, high))
            least = minimum(load(rows, low + 16), load(rows, high + 16))
            most = maximum(load(rows, low + 32), load(rows, high + 32))
            row = 120 * brick + 8 * (x + 7) + c
            store(rows, SIDES + row, absolute(total))
            # The word, or its complement, with one coordinate times -3.
            store(rows, CENTRE + row, maximum(subtract(total, least), subtract(most, total)))


@compiled()
def _label_total(rows: np.ndarray, left: int, right: int, centre: int, c: int) -> Floats:
    best = add(load(rows, left), load(rows, right + c))
    for b in range(1, 8):
        best = maximum(best, add(load(rows, left + b), load(rows, right + (b ^ c))))
    return add(best, load(rows, centre + c))


@compiled()
def find_winners(rows: np.ndarray, winners: np.ndarray, first: int, stop: int) -> None:
    """Numbers of the best of the groups [first, stop), one per lane."""
    best, winner = constant(np.float32(-np.inf)), integer(np.int32(0))
    if first == 0:
        best = maximum(maximum(load(rows, FULL), load(rows, FULL + 1)), load(rows, FULL + 2))
        for row in range(14):
            a, b = load(rows, EMPTY + row), load(rows, EMPTY + 14 + row)
            c = load(rows, EMPTY + 28 + row)
            total = maximum(maximum(add(a, b), add(b, c)), add(c, a))
            winner = where_greater(total, best, integer(np.int32(TYPE_2B)), winner)
            best = maximum(total, best)
    for x in range(max(first, 2) - 2, min(stop, 17) - 2):
        for p in range(3):
            left, right = SIDES + (p + 1) % 3 * 120 + 8 * x, SIDES + (p + 2) % 3 * 120 + 8 * x
            centre, number = CENTRE + 120 * p + 8 * x, LABELLED + 24 * x + 8 * p
            for c in range(8):
                total = _label_total(rows, left, right, centre, c)
                winner = where_greater(total, best, integer(np.int32(number + c)), winner)
                best = maximum(total, best)
    if stop == 18:
        largest = absolute(load(rows, DOUBLED))
        second = constant(np.float32(0))
        for k in range(1, 24):
            size = absolute(load(rows, DOUBLED + k))
            second = maximum(second, minimum(largest, size))
            largest = maximum(largest, size)
        total = multiply(add(largest, second), constant(np.float32(2)))
        winner = where_greater(total, best, integer(np.int32(TYPE_4)), winner)
    store(winners, 0, winner)

"""From the winning group of Leech codes to the code, compiled: `traceback`, vector by vector.

Sums, comparisons and ties are those of `traceback`; a vector's coordinates and scores are one
lane of the workspace of `simd`. Needs numba (extra `fast`).
"""

from __future__ import annotations

import numpy as np

from lambda24.tokenizer.lattices import order
from lambda24.tokenizer.lattices.search.kernel_scores import (
    DOUBLED,
    EMPTY,
    FULL,
    LABELLED,
    PAIR_PLACES,
    SIDE_PAIRS,
    SIDES,
    TETRAD_PLACES,
    TYPE_2B,
    TYPE_3,
    TYPE_4,
    VECTORS,
    WORDS,
    compiled,
)
from lambda24.tokenizer.lattices.search.simd import LANES

_index_2a = compiled()(order.index_2a)
_index_2b = compiled()(order.index_2b)
_index_2c = compiled()(order.index_2c)
_index_3 = compiled()(order.index_3)
_index_4 = compiled()(order.index_4)


@compiled()
def _at(rows: np.ndarray, lane: int, row: int) -> float:
    return rows[row * LANES + lane]


@compiled()
def _best_half(rows: np.ndarray, lane: int, t: int, brick: int, odd: int) -> int:
    """`8 h + k3` of the better of a tetrad and its complement, see `traceback`."""
    best, bits, z = np.float32(-1), 16, DOUBLED + 8 * brick
    for h in range(2):
        a = _at(rows, lane, z + TETRAD_PLACES[t, h, 0])
        b = _at(rows, lane, z + TETRAD_PLACES[t, h, 1])
        c = _at(rows, lane, z + TETRAD_PLACES[t, h, 2])
        d = _at(rows, lane, z + TETRAD_PLACES[t, h, 3])
        for unlike in range(2):
            left = a - b if unlike else a + b
            right = c - d if unlike ^ odd else c + d
            score = abs(left) + abs(right)
            low = 2 + 2 * (left < 0) if unlike else 6 * (left < 0)
            low += 8 * h + (right < 0)
            if score > best or (score == best and low < bits):
                best, bits = score, low
    return bits


@compiled()
def _decode_2a(rows: np.ndarray, lane: int) -> int:
    p = 0
    for brick in range(1, 3):
        if _at(rows, lane, FULL + brick) > _at(rows, lane, FULL + p):
            p = brick
    bits, odd, least = 0, 0, np.float32(np.inf)
    for k in range(8):
        z = _at(rows, lane, DOUBLED + 8 * p + k)
        least = min(least, abs(z))
        if z < 0:
            bits += 128 >> k >> 1
            odd ^= 1
    change = 0
    if odd:  # the cheapest flip; among equals the one that leaves the smallest bits
        change = 256
        for k in range(8):
            z = _at(rows, lane, DOUBLED + 8 * p + k)
            if abs(z) == least:
                weight = 128 >> k >> 1
                change = min(change, -weight if z < 0 else weight)
    return _index_2a(p, bits + change)


@compiled()
def _decode_2b(rows: np.ndarray, lane: int) -> int:
    best, code = np.float32(-1), 0
    for p in range(3):
        for row in range(14):
            first = _at(rows, lane, EMPTY + 14 * ((p + 1) % 3) + row)
            total = first + _at(rows, lane, EMPTY + 14 * ((p + 2) % 3) + row)
            if total > best:
                best, code = total, 14 * p + row
    p, t, odd = code // 14, code // 2 % 7, code & 1
    f1 = _best_half(rows, lane, t, (p + 1) % 3, odd)
    f2 = _best_half(rows, lane, t, (p + 2) % 3, odd)
    return _index_2b(code, f1, f2)


@compiled()
def _best_label(rows: np.ndarray, lane: int, x: int, p: int, c: int) -> int:
    """First b with the largest sum of the scores of labels b and b ^ c of bricks q1 and q2."""
    left, right = SIDES + (p + 1) % 3 * 120 + 8 * x, SIDES + (p + 2) % 3 * 120 + 8 * x
    best, label = np.float32(-1), 0
    for b in range(8):
        total = _at(rows, lane, left + b) + _at(rows, lane, right + (b ^ c))
        if total > best:
            best, label = total, b
    return label


@compiled()
def _pair_is_minus(rows: np.ndarray, lane: int, x: int, brick: int, label: int) -> bool:
    pair = SIDE_PAIRS[x, label >> 1]
    first = _at(rows, lane, DOUBLED + 8 * brick + PAIR_PLACES[pair, 0])
    second = _at(rows, lane, DOUBLED + 8 * brick + PAIR_PLACES[pair, 1])
    return (first - second if label & 1 else first + second) < 0


@compiled()
def _decode_2c(rows: np.ndarray, lane: int, code: int) -> int:
    x, p, c = code // 24, code // 8 % 3, code & 7
    b = _best_label(rows, lane, x, p, c)
    f = _best_half(rows, lane, 7 + 4 * x + (c >> 1), p, c & 1)
    s1 = _pair_is_minus(rows, lane, x, (p + 1) % 3, b)
    s2 = _pair_is_minus(rows, lane, x, (p + 2) % 3, b ^ c)
    return _index_2c(code, b, f, s1, s2)


@compiled()
def _signed(rows: np.ndarray, lane: int, row: int, minus: bool) -> float:
    z = _at(rows, lane, row)
    return -z if minus else z


@compiled()
def _word_score(rows: np.ndarray, lane: int, brick: int, word: int) -> np.float32:
    z, total = VECTORS + 8 * brick, np.float32(0)
    for half in range(2):
        row, signs = z + 4 * half, word >> 4 * half
        first = _signed(rows, lane, row, signs & 1) + _signed(rows, lane, row + 1, signs & 2)
        second = _signed(rows, lane, row + 2, signs & 4) + _signed(rows, lane, row + 3, signs & 8)
        total += first + second
    return total


@compiled()
def _decode_3(rows: np.ndarray, lane: int, code: int) -> int:
    x, p, c = code // 24, code // 8 % 3, code & 7
    b = _best_label(rows, lane, x + 7, p, c)
    word, z = WORDS[x, c], VECTORS + 8 * p
    total = _word_score(rows, lane, p, word)
    least = most = _signed(rows, lane, z, word & 1)
    first, last = 0, 0
    for k in range(1, 8):
        value = _signed(rows, lane, z + k, word >> k & 1)
        if value < least:
            least, first = value, k
        if value > most:
            most, last = value, k
    four = np.float32(4)
    flip = four * most - total > total - four * least
    s1 = _word_score(rows, lane, (p + 1) % 3, WORDS[x, b]) < 0
    s2 = _word_score(rows, lane, (p + 2) % 3, WORDS[x, b ^ c]) < 0
    signs = flip * 4 + s1 * 2 + s2
    return _index_3(code, b, signs, last if flip else first)


@compiled()
def _decode_4(rows: np.ndarray, lane: int) -> int:
    first = 0
    for k in range(1, 24):
        if abs(_at(rows, lane, DOUBLED + k)) > abs(_at(rows, lane, DOUBLED + first)):
            first = k
    second = 0 if first else 1
    for k in range(second + 1, 24):
        size = abs(_at(rows, lane, DOUBLED + k))
        if k != first and size > abs(_at(rows, lane, DOUBLED + second)):
            second = k
    i, j = min(first, second), max(first, second)
    minus_i, minus_j = _at(rows, lane, DOUBLED + i) < 0, _at(rows, lane, DOUBLED + j) < 0
    return _index_4(i, j, minus_i, minus_j)


@compiled()
def decode(rows: np.ndarray, lane: int, winner: int) -> int:
    if winner >= TYPE_4:
        return _decode_4(rows, lane)
    if winner >= TYPE_3:
        return _decode_3(rows, lane, winner - TYPE_3)
    if winner >= LABELLED:
        return _decode_2c(rows, lane, winner - LABELLED)
    if winner == TYPE_2B:
        return _decode_2b(rows, lane)
    return _decode_2a(rows, lane)

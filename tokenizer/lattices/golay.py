"""The extended binary Golay code [24, 12, 8] in Turyn form |a+x|b+x|a+b+x| (Turyn 1967).

A word is three bricks of eight coordinates. Brick coordinate k is a vector of F2^3, a brick word is
one byte (bit k = coordinate k), and `(x, a)` labels a brick word modulo complement. All tables here
are constants of the code; nothing depends on a lattice.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

LENGTH = 24
NUM_WORDS = 4096
NUM_OCTADS = 759

# The two [8, 4, 4] Hamming codes, modulo the all-ones byte, that meet only in {0, ~0}.
# Bit k of LINEAR_WORDS[a] is the parity of a & k.
LINEAR_WORDS = (0x00, 0xAA, 0xCC, 0x66, 0xF0, 0x5A, 0x3C, 0x96)
# Bit k of CUBIC_WORDS[x] is Tr(beta_x k^3) in F8 = F2[t] / (t^3 + t + 1), with the basis beta dual
# to the linear words: |LINEAR_WORDS[a] & CUBIC_WORDS[x]| = <a, x> mod 2.
CUBIC_WORDS = (0x00, 0x56, 0x9C, 0xCA, 0x78, 0x2E, 0xE4, 0xB2)


def parity(word: int) -> int:
    """Number of set bits modulo 2."""
    return word.bit_count() & 1


def brick_word(x: int, a: int) -> int:
    """Byte of the brick with label `(x, a)`; bit 0 is always clear."""
    return LINEAR_WORDS[a] ^ CUBIC_WORDS[x]


def brick_labels(word: int) -> tuple[int, int, int]:
    """`(x, a, complemented)` of an even byte, the inverse of `brick_word` up to complement."""
    x = sum(parity(word & LINEAR_WORDS[1 << j]) << j for j in range(3))
    a = sum(parity(word & CUBIC_WORDS[1 << j]) << j for j in range(3))
    return x, a, word & 1


def support(word: int) -> tuple[int, ...]:
    """Set bits of a byte, ascending."""
    return tuple(k for k in range(8) if word >> k & 1)


def tetrad_labels(x: int) -> tuple[int, ...]:
    """For x != 0, the four a with <a, x> = 0: the span (0, u, v, u ^ v) of the two smallest.

    Brick words `(x, a)` with these labels are a tetrad and its complement.
    """
    u, v = [a for a in range(1, 8) if not parity(a & x)][:2]
    return 0, u, v, u ^ v


def pair_labels(x: int) -> tuple[int, ...]:
    """For x != 0, the four a with <a, x> = 1: the brick word has weight 2 or 6."""
    shift = min(a for a in range(8) if parity(a & x))
    return tuple(shift ^ a for a in tetrad_labels(x))


def pair(x: int, t: int) -> tuple[int, int]:
    """The pair {i < i ^ x} of class `(x, pair_labels(x)[t])`."""
    word = brick_word(x, pair_labels(x)[t])
    i, j = support(word if word.bit_count() == 2 else word ^ 0xFF)
    return i, j


def tetrad(x: int, t: int, complemented: int) -> tuple[int, ...]:
    """Coordinates of tetrad class t: a = `tetrad_labels(x)[t]`, or t + 1 for x = 0."""
    word = brick_word(x, tetrad_labels(x)[t] if x else t + 1)
    return support(word ^ (0xFF if complemented else 0))


@lru_cache(maxsize=1)
def _words() -> np.ndarray:
    x, a, b, s = np.indices((8, 8, 8, 8)).reshape(4, -1)
    linear, cubic = np.array(LINEAR_WORDS), np.array(CUBIC_WORDS)
    bricks = [
        linear[label] ^ cubic[x] ^ 0xFF * (s >> (2 - brick) & 1)
        for brick, label in enumerate((a, b, a ^ b))
    ]
    bits = np.stack(bricks, axis=1)[:, :, None] >> np.arange(8) & 1
    return bits.reshape(NUM_WORDS, LENGTH).astype(np.int8)


def codewords() -> Tensor:
    """All words as 0/1, `(4096, 24)` int8; word (x, a, b, s) is row `((x*8 + a)*8 + b)*8 + s`.

    The bricks are `(x, a)`, `(x, b)`, `(x, a ^ b)`; bits 2, 1, 0 of s complement bricks 0, 1, 2.
    """
    return torch.from_numpy(_words().copy())


def octads() -> Tensor:
    """The words of weight 8 as 0/1, `(759, 24)` int8, in the order of `codewords`."""
    words = _words()
    return torch.from_numpy(words[words.sum(1) == 8])

"""Tokens in log2 of their codebook's size: digits of a number with mixed radices.

A block of tokens is one integer, so nothing but the rounding of a block to whole bytes is lost:
2e-4 of the length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

BLOCK = 1024  # tokens of one integer: longer ones take quadratic time
WORD_BITS = 62  # of a digit that numpy computes


def pack_tokens(tokens: Tensor, sizes: Sequence[int]) -> bytes:
    """Tokens int64 `(N, G)` of codebooks of these G sizes, as bytes.

    Raises:
        ValueError: another shape, or a token outside its codebook.
    """
    bases = tuple(int(size) for size in sizes)
    if tokens.ndim != 2 or tokens.shape[1] != len(bases):
        raise ValueError(f"tokens must be (N, {len(bases)}), got {tuple(tokens.shape)}")
    limits = torch.tensor(bases)
    if bool(((tokens < 0) | (tokens >= limits)).any()):
        raise ValueError(
            f"tokens must be below {bases}, got [{int(tokens.min())}, {int(tokens.max())}]"
        )
    parts = []
    for block in tokens.cpu().split(BLOCK):
        number = 0
        for digit, base in zip(*_digits(block.numpy(), bases), strict=True):
            number = number * base + digit
        parts.append(number.to_bytes(_num_bytes(len(block), bases), "little"))
    return b"".join(parts)


def unpack_tokens(data: bytes, count: int, sizes: Sequence[int]) -> Tensor:
    """The inverse of `pack_tokens`: int64 `(count, G)`.

    Raises:
        ValueError: another number of bytes, or bytes that no tokens make.
    """
    bases = tuple(int(size) for size in sizes)
    lengths = [min(BLOCK, count - start) for start in range(0, count, BLOCK)]
    expected = packed_size(count, bases)
    if len(data) != expected:
        raise ValueError(f"{count} tokens are {expected} bytes, got {len(data)}")
    blocks, position = [], 0
    for length in lengths:
        size = _num_bytes(length, bases)
        number = int.from_bytes(data[position : position + size], "little")
        position += size
        words, radices = [], _radices(length, bases)
        for radix in reversed(radices):
            number, word = divmod(number, radix)
            words.append(word)
        if number:
            raise ValueError(f"bytes {position - size} to {position} are no {length} tokens")
        blocks.append(_tokens(words[::-1], length, bases))
    return torch.cat(blocks) if blocks else torch.empty(0, len(bases), dtype=torch.int64)


def packed_size(count: int, sizes: Sequence[int]) -> int:
    """Bytes of `count` tokens."""
    bases = tuple(int(size) for size in sizes)
    whole, rest = divmod(count, BLOCK)
    return whole * _num_bytes(BLOCK, bases) + (_num_bytes(rest, bases) if rest else 0)


@lru_cache(maxsize=64)
def _num_bytes(length: int, bases: tuple[int, ...]) -> int:
    return ((math.prod(bases) ** length - 1).bit_length() + 7) // 8


def _tokens_a_word(bases: tuple[int, ...]) -> int:
    """How many whole tokens fit a word; 0 if a single one does not."""
    return int(WORD_BITS // max(1.0, math.log2(math.prod(bases)) + 1e-9))


@lru_cache(maxsize=64)
def _radices(length: int, bases: tuple[int, ...]) -> tuple[int, ...]:
    """Radix of each word of a block."""
    a_word = _tokens_a_word(bases)
    if not a_word:
        return bases * length
    whole, rest = divmod(length, a_word)
    radix = math.prod(bases)
    return (radix**a_word,) * whole + ((radix**rest,) if rest else ())


def _digits(block: np.ndarray, bases: tuple[int, ...]) -> tuple[list[int], tuple[int, ...]]:
    """Words of a block (n, G) and their radices."""
    radices, a_word = _radices(len(block), bases), _tokens_a_word(bases)
    if not a_word:
        return block.reshape(-1).tolist(), radices
    one = np.zeros(len(block), np.int64)
    for column, base in enumerate(bases):
        one = one * base + block[:, column]
    radix, words = math.prod(bases), []
    whole = len(block) // a_word * a_word
    for part in (one[:whole].reshape(-1, a_word), one[whole:].reshape(1, -1)):
        if part.size:
            total = np.zeros(len(part), np.int64)
            for column in range(part.shape[1]):
                total = total * radix + part[:, column]
            words += total.tolist()
    return words, radices


def _tokens(words: list[int], length: int, bases: tuple[int, ...]) -> Tensor:
    a_word = _tokens_a_word(bases)
    if not a_word:
        return torch.tensor(words, dtype=torch.int64).view(length, len(bases))
    radix, parts = math.prod(bases), []
    whole, rest = divmod(length, a_word)
    for chunk, count in ((words[:whole], a_word), (words[whole:], rest)):
        if chunk:
            left, columns = np.array(chunk, np.int64), []
            for _ in range(count):
                left, digit = np.divmod(left, radix)
                columns.append(digit)
            parts.append(np.stack(columns[::-1], axis=1).reshape(-1))
    one, columns = np.concatenate(parts), []
    for base in reversed(bases):
        one, digit = np.divmod(one, base)
        columns.append(digit)
    return torch.from_numpy(np.stack(columns[::-1], axis=1))

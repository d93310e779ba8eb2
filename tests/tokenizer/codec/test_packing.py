"""Tokens as digits of integers: exact, and as short as integers can be."""

from __future__ import annotations

import math

import pytest
import torch

from lambda24.tokenizer.codec.packing import BLOCK, pack_tokens, packed_size, unpack_tokens

SIZES = [(196_560,), (2,), (1,), (443, 443), (7, 5, 3), (2**40,), (2**62,), (2**40, 3)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 100, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_round_trip(sizes: tuple[int, ...], count: int) -> None:
    torch.manual_seed(count)
    tokens = torch.stack([torch.randint(size, (count,)) for size in sizes], dim=1)
    tokens[::3] = torch.tensor(sizes) - 1  # the largest of all
    data = pack_tokens(tokens, sizes)
    assert len(data) == packed_size(count, sizes)
    assert torch.equal(unpack_tokens(data, count, sizes), tokens)


def test_bytes_are_one_integer_by_definition() -> None:
    tokens = torch.tensor([[3, 1], [6, 4], [0, 2]])
    number = 0
    for first, second in tokens.tolist():
        number = (number * 7 + first) * 5 + second
    assert int.from_bytes(pack_tokens(tokens, (7, 5)), "little") == number


def test_length_is_that_of_the_codebook() -> None:
    """At most the rounding of blocks to bytes: one byte an image, 2e-4 of a long file."""
    bits = math.log2(196_560)
    assert packed_size(103, (196_560,)) == math.ceil(103 * bits / 8)
    assert 8 * packed_size(100_000, (196_560,)) < 100_000 * bits * 1.0003


def test_what_no_tokens_make() -> None:
    with pytest.raises(ValueError, match=r"10 tokens are 22 bytes, got 21"):
        unpack_tokens(bytes(21), 10, (196_560,))
    with pytest.raises(ValueError, match=r"are no 10 tokens"):
        unpack_tokens(b"\xff" * 22, 10, (196_560,))
    with pytest.raises(ValueError, match=r"must be below \(5,\), got \[-1, 5\]"):
        pack_tokens(torch.tensor([[-1], [5]]), (5,))
    with pytest.raises(ValueError, match=r"tokens must be \(N, 1\), got \(2, 2\)"):
        pack_tokens(torch.zeros(2, 2, dtype=torch.int64), (5,))

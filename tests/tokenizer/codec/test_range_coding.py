"""Range coding: what goes in comes out, in about as many bits as probabilities say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lambda24.tokenizer.codec.range_coding import (
    Decoder,
    Encoder,
    code_categories,
    part_width,
    probabilities,
)


def drawn(logits: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Categorical(logits=logits).sample()


@pytest.mark.parametrize("size", [1, 2, 400, 513, 5_000, 196_560])
def test_round_trip_within_a_thousandth_of_the_entropy(size: int) -> None:
    torch.manual_seed(size)
    logits = 3 * torch.randn(2000 if size < 1000 else 60, size, dtype=torch.float64)
    symbols = drawn(logits)
    encoder = Encoder()
    assert torch.equal(code_categories(encoder, logits, symbols), symbols)
    data = encoder.bytes()
    assert torch.equal(code_categories(Decoder(data), logits, None), symbols)
    nats = -logits.log_softmax(1).gather(1, symbols[:, None]).sum()
    assert 8 * len(data) < float(nats) / np.log(2) * 1.002 + 40


def test_one_row_serves_all_symbols() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(1, 2000, dtype=torch.float64)
    symbols = drawn(logits.expand(300, -1))
    apart, shared = Encoder(), Encoder()
    code_categories(apart, logits.expand(300, -1), symbols)
    code_categories(shared, logits, symbols, 300)
    assert apart.bytes() == shared.bytes()
    assert torch.equal(code_categories(Decoder(shared.bytes()), logits, None, 300), symbols)


def test_rounding_errors_of_a_computation_change_nothing() -> None:
    torch.manual_seed(0)
    logits = 5 * torch.randn(50, 3000, dtype=torch.float64)
    symbols = drawn(logits)
    encoder = Encoder()
    code_categories(encoder, logits, symbols)
    other = logits * (1 + 1e-13 * torch.randn_like(logits)) + 7
    assert torch.equal(code_categories(Decoder(encoder.bytes()), other, None), symbols)


def test_probabilities_are_ratios_of_integers() -> None:
    logs = torch.tensor([[0.0, -1.0, -3.0, -50.0, -torch.inf]], dtype=torch.float64)
    found = probabilities(logs)[0]
    expected = np.exp([0.0, -1.0, -3.0, -16.0, -16.0])
    assert found == pytest.approx(expected / expected.sum(), rel=1e-4)
    assert (found > 0).all()


@pytest.mark.parametrize(
    "logs", [[[np.nan, 0.0]], [[-np.inf, -np.inf]], [[np.inf, 0.0]]], ids=["nan", "none", "inf"]
)
def test_weights_that_are_none(logs: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="log weights must be numbers"):
        probabilities(torch.tensor(logs, dtype=torch.float64))


def test_damaged_bytes_are_an_error_or_other_symbols() -> None:
    """Never anything else; checksums of the file and of the tokens tell the rest."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(2000, 3, dtype=torch.float64)
    random, messages = np.random.default_rng(0), []
    for _ in range(100):
        data = random.integers(0, 256, random.integers(0, 200), np.uint8).tobytes()
        try:
            found = code_categories(Decoder(data), logits, None)
        except ValueError as error:
            messages.append(str(error))
        else:
            assert 0 <= int(found.min()) <= int(found.max()) < 3
    assert messages
    assert all("damaged" in message for message in messages)


def test_parts_are_about_as_many_as_they_are_wide() -> None:
    assert part_width(196_560) == 444
    assert part_width(10_000) == 100

"""Range coding of symbols under given probabilities (`constriction`, extra `codec`).

Encoder and decoder are one callable, `coder(log_weights, symbols) -> symbols`: one takes the
symbols, the other finds them, so that what they code with is written once. Both turn log weights
into the same integers: rounded to multiples of 2^-10 (at most 5e-4 nats a symbol are lost), then
through one table. Two computations of a weight that differ by rounding nearly always land on one
multiple.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

STEPS = 1 << 10  # multiples of a nat
DEPTH = 16  # nats below the most likely symbol, where probabilities end
LARGEST = 1 << 40
WORD_BYTES = 4
MAX_SYMBOLS = 512  # of a table; longer alphabets are coded in two steps


class Coder(ABC):
    """Codes rows of symbols, one probability table a row."""

    @abstractmethod
    def __call__(self, log_weights: Tensor, symbols: Tensor | None) -> Tensor:
        """Symbols int64 `(N,)` under float64 `log_weights (N, A)`, unnormalised."""


class Encoder(Coder):
    """Takes symbols; `bytes` are theirs.

    Raises:
        ValueError: `constriction` is not installed.
    """

    def __init__(self) -> None:
        self._library = _constriction()
        self._encoder = self._library.stream.queue.RangeEncoder()
        self._model = self._library.stream.model.Categorical(perfect=False)

    def __call__(self, log_weights: Tensor, symbols: Tensor | None) -> Tensor:
        assert symbols is not None
        if len(symbols):
            numbers = symbols.cpu().numpy().astype(np.int32)
            self._encoder.encode(numbers, self._model, probabilities(log_weights))
        return symbols

    def bytes(self) -> bytes:
        """All that was coded; zeros at the end are left out."""
        words = self._encoder.get_compressed().astype(">u4")
        return words.tobytes().rstrip(b"\0")


class Decoder(Coder):
    """Finds the symbols that `Encoder` was given, asked with the same weights in the same order.

    Raises:
        ValueError: `constriction` is not installed; bytes that no encoder made with these weights.
    """

    def __init__(self, data: bytes) -> None:
        library = _constriction()
        padded = data + b"\0" * (-len(data) % WORD_BYTES)
        words = np.frombuffer(padded, ">u4").astype(np.uint32)
        self._decoder = library.stream.queue.RangeDecoder(words)
        self._model = library.stream.model.Categorical(perfect=False)

    def __call__(self, log_weights: Tensor, symbols: Tensor | None) -> Tensor:
        if not len(log_weights):
            return torch.empty(0, dtype=torch.int64)
        try:
            found = self._decoder.decode(self._model, probabilities(log_weights))
        except AssertionError as error:  # what the library raises for impossible data
            raise ValueError(f"the payload is damaged: {error}") from error
        return torch.from_numpy(found.astype(np.int64)).to(log_weights.device)


def code_categories(
    coder: Coder, log_weights: Tensor, symbols: Tensor | None, count: int | None = None
) -> Tensor:
    """Codes symbols of any alphabet: first which part of it, then which symbol of the part.

    Args:
        log_weights: float64 `(N, V)`, unnormalised, or `(1, V)` for all of `count` symbols.
        symbols: int64 `(N,)`, None for a decoder.
        count: N, if there is one row for all.
    """
    size = log_weights.shape[1]
    count = len(log_weights) if count is None else count
    if size == 1:
        return torch.zeros(count, dtype=torch.int64, device=log_weights.device)
    if size <= MAX_SYMBOLS:
        return coder(log_weights.expand(count, -1), symbols)
    width = part_width(size)
    padded = torch.nn.functional.pad(log_weights, (0, -size % width), value=-math.inf)
    parts = padded.view(len(padded), -1, width)
    sums = parts.logsumexp(2).expand(count, -1)
    high = coder(sums, None if symbols is None else symbols // width)
    rows = parts.expand(count, -1, -1)[torch.arange(count, device=parts.device), high]
    low = coder(rows, None if symbols is None else symbols % width)
    found = high * width + low
    if bool((found >= size).any()):
        raise ValueError("the payload is damaged: it names a code that there is not")
    return found


def part_width(size: int) -> int:
    """Symbols of a part: about as many as there are parts."""
    return math.isqrt(size - 1) + 1


def probabilities(log_weights: Tensor) -> np.ndarray:
    """Log weights `(N, A)` to probabilities that every machine computes alike, float64 `(N, A)`.

    Raises:
        ValueError: a weight that is not a number, or a row without one above zero.
    """
    logs = log_weights.detach().to("cpu", torch.float64)
    top = logs.amax(1, keepdim=True)
    if not bool(top.isfinite().all()) or bool(logs.isnan().any()):
        raise ValueError("log weights must be numbers, and not all of a row -inf")
    places = ((logs - top) * STEPS).round_().clamp_(min=-DEPTH * STEPS).neg_().to(torch.int64)
    weights = _table()[places.numpy()]
    normalized: np.ndarray = weights / weights.sum(1, keepdims=True)  # integers below 2^53
    return normalized


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """LARGEST x exp(-i / STEPS), rounded: integers held by float64."""
    values = [float(round(LARGEST * math.exp(-i / STEPS))) for i in range(DEPTH * STEPS + 1)]
    return np.array(values)


def _constriction() -> Any:
    try:
        import constriction
    except ImportError as error:
        message = "modes static and model need constriction: install lambda24[codec]"
        raise ValueError(message) from error
    return constriction

"""Filters over dense logits, as pure functions of tensors `(..., V)`; -inf means forbidden.

Ties at a cut are kept, so a filter never depends on a sorting order, and rows are independent.
`best_candidates` is `top_k` without what it forbids: later filters and the draw then look at k
codes instead of V, and come to the same result bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lambda24.common.draws import inverse_cdf

__all__ = ["Candidates", "best_candidates", "min_p", "top_k", "top_p"]

PROBES = 1 << 13  # entries of a long row that a first guess at its k-th best is made from


@dataclass(frozen=True)
class Candidates:
    """Codes that can still be drawn.

    Args:
        logits: `(..., m)`.
        codes: int64 `(..., m)`, rising where logits are not -inf; None when m = V and all are
            there.
    """

    logits: Tensor
    codes: Tensor | None = None

    def draw(self, uniforms: Tensor) -> Tensor:
        """One code a row, int64 `(...)`, from `uniforms (...)`; see `inverse_cdf`."""
        places = inverse_cdf(self.logits, uniforms)
        if self.codes is None:
            return places
        return self.codes.gather(-1, places.unsqueeze(-1)).squeeze(-1)


def best_candidates(logits: Tensor, k: int) -> Candidates:
    """The k best codes of each row and their ties; short rows are filled up with -inf.

    On a CPU numpy's partial sorting finds them, many times as fast as `torch.topk`.

    Raises:
        ValueError: k outside [1, V].
    """
    if not _on_cpu(logits) or k >= logits.shape[-1]:
        return Candidates(top_k(logits, k))
    _check_k(k, logits.shape[-1])
    rows = logits.detach().reshape(-1, logits.shape[-1]).numpy()
    found = [_best_of_row(row, k) for row in rows]
    widest = max(map(len, found))
    kept = np.full((len(rows), widest), -np.inf, rows.dtype)
    codes = np.zeros((len(rows), widest), np.int64)
    for row, places, values, numbers in zip(rows, found, kept, codes, strict=True):
        numbers[: len(places)] = places
        values[: len(places)] = row[places]
    shape = (*logits.shape[:-1], widest)
    return Candidates(torch.from_numpy(kept).view(shape), torch.from_numpy(codes).view(shape))


def top_k(logits: Tensor, k: int) -> Tensor:
    """Forbids all but the k best codes of each row, and their ties.

    Raises:
        ValueError: k outside [1, V].
    """
    num_codes = logits.shape[-1]
    _check_k(k, num_codes)
    if k == num_codes:
        return logits
    worst = logits.topk(k, sorted=False).values.amin(-1, keepdim=True)
    return logits.masked_fill(logits < worst, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the fewest best codes whose probabilities reach p, and their ties (nucleus sampling).

    The best code is always kept. Apply it after `top_k` or `best_candidates`: what is forbidden or
    gone costs no sorting.

    Raises:
        ValueError: p outside (0, 1].
    """
    if not 0 < p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {p}")
    if p == 1:
        return logits
    best = _descending(logits)
    probabilities = best.double().softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    worst = best.masked_fill(before >= p, torch.inf).amin(-1, keepdim=True)
    return logits.masked_fill(logits < worst, -torch.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keeps codes at least p times as probable as the best one (arXiv 2407.01082); 0 keeps all.

    Raises:
        ValueError: p outside [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"min_p must be in [0, 1], got {p}")
    if p == 0:
        return logits
    worst = logits.amax(-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < worst, -torch.inf)


def _check_k(k: int, num_codes: int) -> None:
    if not 1 <= k <= num_codes:
        raise ValueError(f"top_k must be in [1, {num_codes}] for {num_codes} codes, got {k}")


def _on_cpu(logits: Tensor) -> bool:
    """Whether numpy can look at them."""
    return logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.float64)


def _descending(logits: Tensor) -> Tensor:
    """The values of each row sorted, best first, as many as the row with most of them allows."""
    if _on_cpu(logits):
        rising = torch.from_numpy(np.sort(logits.detach().numpy(), axis=-1))
        allowed = int((rising > -torch.inf).sum(-1).max())
        return rising[..., rising.shape[-1] - allowed :].flip(-1)
    allowed = int((logits > -torch.inf).sum(-1).max())
    return logits.topk(allowed, sorted=True).values


def _best_of_row(row: np.ndarray, k: int) -> np.ndarray:
    """Places of the k best entries and their ties, rising.

    A sample of a long row gives a bound that about k entries reach: when at least k do, the k-th
    best is among them.
    """
    if len(row) >= 4 * PROBES:
        rank = k * PROBES / len(row)
        rank = min(PROBES, round(rank + 4 * math.sqrt(rank) + 4))
        probes = row[_probes(len(row))]
        places = np.flatnonzero(row >= np.partition(probes, PROBES - rank)[PROBES - rank])
        if len(places) >= k:
            return places[_reach_kth(row[places], k)]
    return np.flatnonzero(_reach_kth(row, k))


def _reach_kth(values: np.ndarray, k: int) -> np.ndarray:
    """Which values are at least the k-th best."""
    worst = len(values) - k
    return values >= np.partition(values, worst)[worst]


@lru_cache(maxsize=8)
def _probes(length: int) -> np.ndarray:
    """Places at random, because neighbouring codes have like scores; always the same ones."""
    return np.random.default_rng(0).choice(length, PROBES, replace=False)

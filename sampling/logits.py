"""Filters over dense logits, as pure functions of tensors `(..., V)`; -inf means forbidden.

Ties at a cut are kept, so a filter never depends on a sorting order, and rows are independent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from generator.heads.base import inverse_cdf as categorical_sample

__all__ = ["categorical_sample", "min_p", "top_k", "top_p"]


def top_k(logits: Tensor, k: int) -> Tensor:
    """Forbids all but the k best codes of each row, and their ties.

    Raises:
        ValueError: k outside [1, V].
    """
    num_codes = logits.shape[-1]
    if not 1 <= k <= num_codes:
        raise ValueError(f"top_k must be in [1, {num_codes}] for {num_codes} codes, got {k}")
    if k == num_codes:
        return logits
    worst = logits.topk(k, sorted=False).values.amin(-1, keepdim=True)
    return logits.masked_fill(logits < worst, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the fewest best codes whose probabilities reach p, and their ties (nucleus sampling).

    The best code is always kept. Apply it after `top_k`: what is forbidden costs no sorting.

    Raises:
        ValueError: p outside (0, 1].
    """
    if not 0 < p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {p}")
    if p == 1:
        return logits
    allowed = int((logits > -torch.inf).sum(-1).max())
    best = logits.topk(allowed, sorted=True).values
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

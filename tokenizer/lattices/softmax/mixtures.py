"""Scores of all codes under a mixture: the log of a sum over components, as matrix products.

Within a class of codes a score is the sum of what two bricks hold together and what the third
holds. So sum_k exp(m_k + left_ki + right_kj) over a class is a product of two small matrices with
the K components between them, and only its result needs a logarithm: the cost hardly depends on K.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor

from lambda24.tokenizer.lattices import order as leech_order
from lambda24.tokenizer.lattices.softmax.scores import (
    START_2B,
    START_2C,
    START_3,
    START_4,
    brick_scores,
    bricks_in_turn,
    four_scores,
    full_scores,
    matching,
)

ROWS = 8  # tokens at a time: 6 MiB of scores


def mixture_code_scores(scores: Tensor, mixture: Tensor) -> Tensor:
    """log sum_k exp(m_k + sum_i l_ki(c_i)) of all codes in canonical order.

    Sums are float64. A code that is more than 708 nats below the best of its class (at most 512
    codes) is put there, at the smallest normal number.

    Args:
        scores: `(N, K, 24, 9)` finite.
        mixture: `(N, K)` finite.

    Returns:
        `(N, 196560)`.
    """
    parts = zip(scores.split(ROWS), mixture.split(ROWS), strict=True)
    places = _places(scores.device)
    return torch.cat([_class_by_class(*part).index_select(1, places) for part in parts])


def _class_by_class(scores: Tensor, mixture: Tensor) -> Tensor:
    """The scores in the order of `_places`, `(n, K, 24, 9)` -> `(n, 196560)`."""
    bricks = brick_scores(scores.flatten(0, 1))
    count, weights = scores.shape[1], mixture.unsqueeze(1)  # (n, 1, K)
    _, first, second = bricks_in_turn(bricks.tetrad0)
    left = rearrange(first + bricks.empty[:, :, None], "p a f (n k) -> n (p a) f k", k=count)
    right = rearrange(second, "p a f (n k) -> n (p a) k f", k=count)
    pieces = [_log_products(left, right, weights)]
    for large, small in (
        (bricks.tetrad, bricks.pair),
        (bricks.tripled.flatten(3, 4), bricks.plain),
    ):
        _, first, second = bricks_in_turn(small)
        others = first[:, :, None, :, :, None] + second[:, :, matching(small.device)].unsqueeze(4)
        left = rearrange(others, "p x c b s t (n k) -> n (x p c) (b s t) k", k=count)
        right = rearrange(large, "p x c m (n k) -> n (x p c) k m", k=count)
        pieces.append(_log_products(left, right, weights))
    few = torch.cat([full_scores(bricks).flatten(0, 1), four_scores(bricks)])
    few = rearrange(few, "c (n k) -> n c k", k=count) + weights
    return torch.cat([*pieces, few.logsumexp(2)], dim=1)


def _log_products(left: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """log sum_k exp(weights_k + left_ik + right_kj) of each class g, flattened.

    Args:
        left: `(n, g, i, K)`.
        right: `(n, g, K, j)`.
        weights: `(n, 1, K)`.

    Returns:
        `(n, g i j)`.
    """
    left_best, right_best = left.amax(2), right.amax(3)  # (n, g, K)
    tops = weights + left_best + right_best  # the best code of each component
    best = tops.amax(2, keepdim=True)
    left = left + (tops - best - left_best).unsqueeze(2)
    right = right - right_best.unsqueeze(3)
    sums = left.double().exp_() @ right.double().exp_()
    logs = sums.clamp_(min=torch.finfo(torch.float64).tiny).log_().to(best.dtype)
    return logs.add_(best.unsqueeze(3)).flatten(1)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # cached tensors must serve training too
def _places(device: torch.device) -> Tensor:
    """Place of each canonical index in the order of `_class_by_class`, `(196560,)`."""
    codes = torch.arange(leech_order.NUM_CODES)
    type2 = codes[START_2C:START_3].view(168, 8, 16, 4)
    type3 = codes[START_3:START_4].view(192, 8, 2, 4, 8)
    order = [
        codes[START_2B:START_2C],
        rearrange(type2, "g b m s -> (g b s m)"),
        rearrange(type3, "g b h s m -> (g b s h m)"),
        codes[:START_2B],
        codes[START_4:],
    ]
    return torch.cat(order).argsort().to(device)

"""Exact draws from the lattice softmax by inverse cumulative sums over ever smaller sets of codes.

The five uniforms of a draw choose: a group of codes, which is a shape of vector with the label of
brick p, the one unlike the others; the label of brick q1 = p + 1 (that of q2 = p + 2 follows); the
member of q1's class; of q2's class; of p's class. Shapes with fewer choices leave some unused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from generator.heads.base import inverse_cdf
from generator.heads.brick_scores import (
    START_2B,
    START_2C,
    START_3,
    START_4,
    BrickScores,
    brick_scores,
    bricks_in_turn,
    four_scores,
    matching,
)

NUM_UNIFORMS = 5
CHUNK = 128  # tokens drawn at a time: 30 MiB of float64 tables
# Groups: brick p full; p empty with tetrads elsewhere (p, label); all else (p, x, label); type 4.
ENDS = (3, 3 + 3 * 14, 3 + 3 * 14 + 3 * 15 * 8)


def draw_codes(scores: Tensor, uniforms: Tensor) -> Tensor:
    """Draws codes with p(c) proportional to exp(sum_i scores_i(c_i)).

    Rows are independent and every sum is float64. What a row would do in the groups that it is not
    in is computed too and dropped, so that no branch waits for the data.

    Args:
        scores: `(N, 24, 9)` finite.
        uniforms: `(N, 5)` in [0, 1).

    Returns:
        Canonical indices, int64 `(N,)`.
    """
    draws = [
        _draw(_Bricks.of(brick_scores(part.double())), numbers)
        for part, numbers in zip(scores.split(CHUNK), uniforms.split(CHUNK), strict=True)
    ]
    return torch.cat(draws)


@dataclass(frozen=True)
class _Bricks:
    """Member scores of the bricks of n tokens; the 15 x are 1..7 of type 2, then 0..7 of type 3."""

    full: Tensor  # (n, 3, 128) codes
    tetrads: Tensor  # (n, 3, 14, 16)
    small: Tensor  # (n, 3, 15, 8, 2)
    large: Tensor  # (n, 3, 15, 8, 16)
    fours: Tensor  # (n, 1104) codes
    partners: Tensor  # (n, 3, 15, 8, 8) label c of p, label b of q1: both other bricks' classes
    groups: Tensor  # (n, 406)

    @classmethod
    def of(cls, bricks: BrickScores) -> _Bricks:
        empty, empty1, empty2 = bricks_in_turn(bricks.empty)
        full = bricks.full + empty1 + empty2
        small = torch.cat([bricks.pair, bricks.plain], dim=2)
        large = torch.cat([bricks.tetrad, bricks.tripled.flatten(4)], dim=2)
        fours = four_scores(bricks)
        _, small1, small2 = bricks_in_turn(small.logsumexp(-1))
        partners = small1[..., None, :] + small2[..., matching(small.device)]
        _, tetrads1, tetrads2 = bricks_in_turn(bricks.tetrad0.logsumexp(-1))
        groups = (
            full.logsumexp(-1),
            (tetrads1 + tetrads2 + empty).flatten(1),
            (large.logsumexp(-1) + partners.logsumexp(-1)).flatten(1),
            fours.logsumexp(-1, keepdim=True),
        )
        joined = torch.cat(groups, dim=1)
        return cls(full, bricks.tetrad0, small, large, fours, partners, joined)


def _draw(bricks: _Bricks, uniforms: Tensor) -> Tensor:
    group = inverse_cdf(bricks.groups, uniforms[:, 0])
    last = bricks.groups.shape[1] - 1
    starts, stops = (0, *ENDS), (*ENDS, last + 1)
    local = [(group - a).clamp(0, b - a - 1) for a, b in zip(starts, stops, strict=True)]
    row = torch.arange(len(group), device=group.device)

    full = local[0] * 128 + inverse_cdf(bricks.full[row, local[0]], uniforms[:, 1])
    four = START_4 + inverse_cdf(bricks.fours, uniforms[:, 1])
    tetrads = _draw_tetrads(bricks, row, local[1], uniforms)
    merged = _draw_merged(bricks, row, local[2], uniforms)
    index = torch.where(group < ENDS[0], full, tetrads)
    index = torch.where(group < ENDS[1], index, merged)
    return torch.where(group < ENDS[2], index, four)


def _draw_tetrads(bricks: _Bricks, row: Tensor, local: Tensor, uniforms: Tensor) -> Tensor:
    p, label = local // 14, local % 14
    member1 = inverse_cdf(bricks.tetrads[row, (p + 1) % 3, label], uniforms[:, 2])
    member2 = inverse_cdf(bricks.tetrads[row, (p + 2) % 3, label], uniforms[:, 3])
    return START_2B + (local * 16 + member1) * 16 + member2


def _draw_merged(bricks: _Bricks, row: Tensor, local: Tensor, uniforms: Tensor) -> Tensor:
    p, x, c = local // 120, local // 8 % 15, local % 8
    b = inverse_cdf(bricks.partners[row, p, x, c], uniforms[:, 1])
    sign1 = inverse_cdf(bricks.small[row, (p + 1) % 3, x, b], uniforms[:, 2])
    sign2 = inverse_cdf(bricks.small[row, (p + 2) % 3, x, b ^ c], uniforms[:, 3])
    member = inverse_cdf(bricks.large[row, p, x, c], uniforms[:, 4])
    signs = 2 * sign1 + sign2
    type2 = START_2C + (((x * 3 + p) * 8 + c) * 8 + b) * 64 + member * 4 + signs
    sign, place = member // 8, member % 8
    type3 = START_3 + ((((x - 7) * 3 + p) * 8 + c) * 8 + b) * 64 + (sign * 4 + signs) * 8 + place
    return torch.where(x < 7, type2, type3)

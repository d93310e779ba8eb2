"""The codes in 406 groups: exact draws from the lattice softmax, and its log normaliser in logs.

Groups are shapes of vector with the label of brick p, the one unlike the others. The five uniforms
of a draw choose: a group; the label of brick q1 = p + 1, which fixes that of q2 = p + 2; the member
of q1's class; of q2's; of p's. Shapes with fewer choices leave some uniforms unused. Rows are
features and columns tokens, as in `brick_scores`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lambda24.common.draws import inverse_cdf
from lambda24.tokenizer.lattices.order import (
    START_4,
    index_2a,
    index_2b,
    index_2c,
    index_3,
    labelled_code,
)
from lambda24.tokenizer.lattices.softmax.scores import (
    brick_scores,
    bricks_in_turn,
    four_scores,
    full_scores,
    matching,
)

NUM_UNIFORMS = 5
BEST_CHUNK = 256  # tokens whose best code is looked for at a time
CHUNK = 128  # tokens drawn at a time: 15 MiB of float64 tables
# Ends of the groups: brick p full; p empty, tetrads elsewhere (p, label); most (p, x, c); type 4.
ENDS = (3, 3 + 3 * 14, 3 + 3 * 14 + 3 * 15 * 8, 3 + 3 * 14 + 3 * 15 * 8 + 1)


@dataclass(frozen=True)
class CodeGroups:
    """Scores of n tokens by group; the 15 x are 1..7 of type 2, then 0..7 of type 3."""

    full: Tensor  # (3, 128, n) codes
    tetrads: Tensor  # (3, 14, 16, n) members
    small: Tensor  # (3, 15, 8, 2, n) members
    large: Tensor  # (3, 15, 8, 16, n) members
    fours: Tensor  # (1104, n) codes
    partners: Tensor  # (3, 15, 8, 8, n) classes on q1 and q2, for label c of p and b of q1
    groups: Tensor  # (406, n) log of the sum over the codes of a group

    @classmethod
    def of(cls, scores: Tensor) -> CodeGroups:
        """Groups of `scores (n, 24, 9)`; differentiable, and exact for all finite scores."""
        bricks = brick_scores(scores)
        small = torch.cat([bricks.pair, bricks.plain], dim=1)
        large = torch.cat([bricks.tetrad, bricks.tripled.flatten(3, 4)], dim=1)
        full, fours = full_scores(bricks), four_scores(bricks)
        _, small1, small2 = bricks_in_turn(small.logsumexp(3))
        partners = small1[:, :, None] + small2[:, :, matching(small.device)]
        _, tetrads1, tetrads2 = bricks_in_turn(bricks.tetrad0.logsumexp(2))
        groups = (
            full.logsumexp(1),
            (tetrads1 + tetrads2 + bricks.empty).flatten(0, 1),
            (large.logsumexp(3) + partners.logsumexp(3)).flatten(0, 2),
            fours.logsumexp(0, keepdim=True),
        )
        return cls(full, bricks.tetrad0, small, large, fours, partners, torch.cat(groups))

    def log_z(self) -> Tensor:
        """Log normaliser, `(n,)`."""
        return self.groups.logsumexp(0)

    def draw(self, uniforms: Tensor) -> Tensor:
        """Canonical indices `(n,)` from `uniforms (n, 5)`."""
        group = inverse_cdf(self.groups.T, uniforms[:, 0])
        starts = (0, *ENDS)
        local = [(group - a).clamp(0, b - a - 1) for a, b in zip(starts, ENDS, strict=False)]
        token = torch.arange(len(group), device=group.device)
        full = index_2a(local[0], inverse_cdf(self.full[local[0], :, token], uniforms[:, 1]))
        index = torch.where(group < ENDS[0], full, self._draw_tetrads(token, local[1], uniforms))
        index = torch.where(group < ENDS[1], index, self._draw_merged(token, local[2], uniforms))
        four = START_4 + inverse_cdf(self.fours.T, uniforms[:, 1])
        return torch.where(group < ENDS[2], index, four)

    def _draw_tetrads(self, token: Tensor, local: Tensor, uniforms: Tensor) -> Tensor:
        p, label = local // 14, local % 14
        member1 = inverse_cdf(self.tetrads[(p + 1) % 3, label, :, token], uniforms[:, 2])
        member2 = inverse_cdf(self.tetrads[(p + 2) % 3, label, :, token], uniforms[:, 3])
        return index_2b(local, member1, member2)

    def _draw_merged(self, token: Tensor, local: Tensor, uniforms: Tensor) -> Tensor:
        p, x, c = local // 120, local // 8 % 15, local % 8
        b = inverse_cdf(self.partners[p, x, c, :, token], uniforms[:, 1])
        sign1 = inverse_cdf(self.small[(p + 1) % 3, x, b, :, token], uniforms[:, 2])
        sign2 = inverse_cdf(self.small[(p + 2) % 3, x, b ^ c, :, token], uniforms[:, 3])
        member = inverse_cdf(self.large[p, x, c, :, token], uniforms[:, 4])
        type2 = index_2c(labelled_code(x, p, c), b, member, sign1, sign2)
        signs = member // 8 * 4 + sign1 * 2 + sign2
        type3 = index_3(labelled_code(x - 7, p, c), b, signs, member % 8)
        return torch.where(x < 7, type2, type3)


def best_code_score(scores: Tensor) -> Tensor:
    """Score of the best code, `(N, 24, 9)` -> `(N,)`: the sums of `CodeGroups` as maxima."""
    return torch.cat([_best_code_score(chunk) for chunk in scores.split(BEST_CHUNK)])


def _best_code_score(scores: Tensor) -> Tensor:
    bricks = brick_scores(scores)
    small = torch.cat([bricks.pair, bricks.plain], dim=1).amax(3)  # (3, 15, 8, n)
    large = torch.cat([bricks.tetrad.amax(3), bricks.tripled.amax((3, 4))], dim=1)
    _, small1, small2 = bricks_in_turn(small)
    _, tetrads1, tetrads2 = bricks_in_turn(bricks.tetrad0.amax(2))
    best = four_scores(bricks).amax(0)
    for group in (full_scores(bricks), tetrads1 + tetrads2 + bricks.empty):
        best = torch.maximum(best, group.amax((0, 1)))
    for c in range(8):
        labels = torch.arange(8, device=scores.device) ^ c
        partners = (small1 + small2.index_select(2, labels)).amax(2)  # (3, 15, n)
        best = torch.maximum(best, (large[:, :, c] + partners).amax((0, 1)))
    return best


def draw_codes(scores: Tensor, uniforms: Tensor) -> Tensor:
    """Draws codes with p(c) proportional to exp(sum_i scores_i(c_i)).

    Tokens are independent and every sum is float64. What a token would do in the groups that it is
    not in is computed too and dropped, so that no branch waits for the data.

    Args:
        scores: `(N, 24, 9)` finite.
        uniforms: `(N, 5)` in [0, 1).

    Returns:
        Canonical indices, int64 `(N,)`.
    """
    parts = zip(scores.split(CHUNK), uniforms.split(CHUNK), strict=True)
    return torch.cat([CodeGroups.of(part.double()).draw(numbers) for part, numbers in parts])

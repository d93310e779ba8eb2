"""The paper's "d-itwise" head: 24 independent nine-way classifiers, one per coordinate of a code.

Cheap and simple, but most strings of coordinates are not codes: its probabilities do not sum to one
over the codebook, and a draw has to be projected to the nearest code. `LatticeHead` is the same
layer normalised over the codes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from lambda24.common.config import config_class
from lambda24.common.draws import inverse_cdf
from lambda24.generator.heads.base import TokenLoss, check_uniforms
from lambda24.generator.heads.lattice_distribution import ScoresDistribution
from lambda24.generator.heads.leech_head import LeechHead
from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.lattices.softmax.log_z import log_normalizer
from lambda24.tokenizer.tokens import TokenSpec


@config_class
class CoordinatesHeadConfig:
    """Config of `CoordinatesHead`."""

    kind: Literal["coordinates"] = "coordinates"


class CoordinatesHead(LeechHead):
    """Cross-entropy summed over coordinates, labels by table.

    `TokenLoss.log_z` is the sum of the 24 log normalisers; `uniform_nll` is the mean over codes.
    """

    normalized_over_codes: ClassVar[bool] = False

    def __init__(self, config: CoordinatesHeadConfig, width: int, spec: TokenSpec) -> None:
        super().__init__(config.kind, width, spec)

    def loss(self, hidden: Tensor, tokens: Tensor, *, with_uniform: bool = False) -> TokenLoss:
        scores = self._scores(hidden)
        log_zs = scores.logsumexp(-1)  # (..., 24)
        log_z = log_zs.sum(-1)
        return TokenLoss(
            nll=log_z - self._token_scores(scores, tokens),
            log_z=log_z,
            factor_squares=log_zs.square().sum(-1),
            uniform_nll=log_z - self.mean_score(scores) if with_uniform else None,
        )

    def code_loss(self, hidden: Tensor, tokens: Tensor) -> TokenLoss:
        """The loss renormalised over valid codes: what other heads' nll can be compared with.

        The mass that the independent coordinates put on valid codes is
        `exp(code_loss.log_z - loss.log_z)`.
        """
        scores = self._scores(hidden)
        log_z = log_normalizer(scores.flatten(0, -3)).view(scores.shape[:-2])
        return TokenLoss(log_z - self._token_scores(scores, tokens), log_z)

    def distribution(self, hidden: Tensor) -> CoordinatesDistribution:
        return CoordinatesDistribution(self._scores(hidden))

    @torch.no_grad()
    def is_best(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Whether the most likely value of every coordinate is the token's, bool `(...)`."""
        return (self._scores(hidden).argmax(-1) == self.cells[tokens.squeeze(-1)]).all(-1)

    def _scores(self, hidden: Tensor) -> Tensor:
        return self.mixture_scores(hidden)[0].squeeze(-3)

    def _token_scores(self, scores: Tensor, tokens: Tensor) -> Tensor:
        return self.token_scores(scores.unsqueeze(-3), tokens.squeeze(-1)).squeeze(-1)


class CoordinatesDistribution(ScoresDistribution):
    """Independent coordinates, `scores (..., 24, 9)`.

    `sample` draws every coordinate and takes the nearest code (the first of several, and the first
    of all for the zero vector), which is not a draw from `logits`: those are over valid codes only.
    """

    @property
    def num_uniforms(self) -> int:
        """One per coordinate."""
        return leech.DIM

    def sample(self, uniforms: Tensor) -> Tensor:
        check_uniforms(uniforms, self.num_uniforms)
        coordinates = inverse_cdf(self.scores, uniforms) - 4  # (..., 24)
        return leech.nearest(coordinates.float()).unsqueeze(-1)

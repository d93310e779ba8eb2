"""The paper's "d-itwise" head: 24 independent nine-way classifiers, one per coordinate of a code.

Cheap and simple, but most strings of coordinates are not codes: its probabilities do not sum to one
over the codebook, and a draw has to be projected to the nearest code. `LatticeHead` is the same
layer normalised over the codes.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from common.config import config_class
from generator.heads.base import (
    CategoricalDistribution,
    Distribution,
    Head,
    TokenLoss,
    check_uniforms,
    head_linear,
    head_outputs,
    inverse_cdf,
)
from generator.heads.brick_scores import code_scores
from generator.heads.brick_tables import NUM_VALUES
from generator.heads.lattice import check_leech_spec
from generator.heads.normalizer import log_normalizer
from tokenizer.lattices import leech
from tokenizer.tokens import TokenSpec


@config_class
class CoordinatesHeadConfig:
    """Config of `CoordinatesHead`."""

    kind: Literal["coordinates"] = "coordinates"


class CoordinatesHead(Head):
    """One linear layer W -> 24 x 9; cross-entropy summed over coordinates, labels by table.

    `TokenLoss.log_z` is the sum of the 24 log normalisers.

    Args:
        config: has no options.
        width: W, channels of the hidden states.
        spec: must describe tokens of the canonical Leech order.

    Raises:
        ValueError: the codebook is not one of 196,560 codes of dimension 24.
    """

    cells: Tensor

    def __init__(self, config: CoordinatesHeadConfig, width: int, spec: TokenSpec) -> None:
        super().__init__()
        check_leech_spec(config.kind, spec)
        self.linear = head_linear(width, leech.DIM * NUM_VALUES)
        self.register_buffer("cells", leech.codebook(torch.int8) + 4, persistent=False)

    def loss(self, hidden: Tensor, tokens: Tensor) -> TokenLoss:
        scores = self._scores(hidden)
        log_z = scores.logsumexp(-1).sum(-1)
        return TokenLoss(log_z - self._token_scores(scores, tokens), log_z)

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

    def _scores(self, hidden: Tensor) -> Tensor:
        outputs = head_outputs(hidden, self.linear.weight, self.linear.bias)
        return rearrange(outputs, "... (i v) -> ... i v", v=NUM_VALUES)

    def _token_scores(self, scores: Tensor, tokens: Tensor) -> Tensor:
        cells = self.cells[tokens.squeeze(-1)].long()  # (..., 24)
        return scores.gather(-1, cells.unsqueeze(-1)).sum((-2, -1))


class CoordinatesDistribution(Distribution):
    """Independent coordinates, `scores (..., 24, 9)`.

    `sample` draws every coordinate and takes the nearest code (the first of several, and the first
    of all for the zero vector), which is not a draw from `logits`: those are over valid codes only.
    """

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    @property
    def num_uniforms(self) -> int:
        """One per coordinate."""
        return leech.DIM

    def guided(self, unconditional: Distribution, scale: float) -> Distribution:
        if not isinstance(unconditional, CoordinatesDistribution):
            return CategoricalDistribution(self.logits()).guided(unconditional, scale)
        return CoordinatesDistribution(scale * self.scores + (1 - scale) * unconditional.scores)

    def tempered(self, temperature: float) -> CoordinatesDistribution:
        return CoordinatesDistribution(self.scores / temperature)

    def logits(self) -> Tensor:
        logits = code_scores(self.scores.reshape(-1, *self.scores.shape[-2:]))
        return logits.view(*self.scores.shape[:-2], leech.NUM_CODES)

    def sample(self, uniforms: Tensor) -> Tensor:
        check_uniforms(uniforms, self.num_uniforms)
        coordinates = inverse_cdf(self.scores, uniforms) - 4  # (..., 24)
        return leech.nearest(coordinates.float()).unsqueeze(-1)

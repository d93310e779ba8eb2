"""The lattice softmax: 24 x 9 scores per token, normalised exactly over the 196,560 codes.

p(c) is proportional to exp(sum_i l_i(c_i)). A mixture of K is p(k, c) proportional to
exp(m_k + sum_i l_ki(c_i)): each component is normalised over the lattice and has weight
softmax(m_k + log Z_k).
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor

from common.config import config_class
from generator.heads.base import Distribution, Head, TokenLoss, head_linear, head_outputs
from generator.heads.brick_tables import NUM_VALUES
from generator.heads.lattice_distribution import LatticeDistribution, MixtureDistribution
from generator.heads.normalizer import log_normalizer
from tokenizer.lattices import leech
from tokenizer.tokens import TokenSpec


@config_class
class LatticeHeadConfig:
    """Config of `LatticeHead`; `num_mixtures` is K."""

    kind: Literal["lattice"] = "lattice"
    num_mixtures: int = Field(default=1, ge=1)


def check_leech_spec(kind: str, spec: TokenSpec) -> None:
    """Raises ValueError when the tokens are not those of the 196,560 codes of dimension 24."""
    if spec.codebook_sizes != (leech.NUM_CODES,) or spec.code_dim != leech.DIM:
        raise ValueError(
            f"the {kind} head needs codebook_sizes ({leech.NUM_CODES},) and code_dim "
            f"{leech.DIM}, got {spec.codebook_sizes} and {spec.code_dim}"
        )


class LatticeHead(Head):
    """One linear layer W -> K (24 x 9) and, when K > 1, K mixture logits.

    `TokenLoss.log_z` is the log normaliser of all scores, log sum_k exp(m_k) Z_k, so that
    `nll = log_z - log sum_k exp(m_k + sum_i l_ki(c_i))`.

    Args:
        config: number of components.
        width: W, channels of the hidden states.
        spec: must describe tokens of the canonical Leech order.

    Raises:
        ValueError: the codebook is not one of 196,560 codes of dimension 24.
    """

    cells: Tensor

    def __init__(self, config: LatticeHeadConfig, width: int, spec: TokenSpec) -> None:
        super().__init__()
        check_leech_spec(config.kind, spec)
        self.num_mixtures = config.num_mixtures
        extra = config.num_mixtures if config.num_mixtures > 1 else 0
        self.linear = head_linear(width, config.num_mixtures * leech.DIM * NUM_VALUES + extra)
        self.register_buffer("cells", leech.codebook(torch.int8) + 4, persistent=False)

    def loss(self, hidden: Tensor, tokens: Tensor) -> TokenLoss:
        batch_shape = tokens.shape[:-1]
        scores, mixture = self._scores(hidden.flatten(0, -2))
        cells = self.cells[tokens.flatten()].long()  # (N, 24)
        cells = cells[:, None, :, None].expand(-1, self.num_mixtures, -1, -1)
        joint = mixture + scores.gather(3, cells).sum((2, 3))  # (N, K)
        log_z = mixture + log_normalizer(scores.flatten(0, 1)).view_as(mixture)
        if self.num_mixtures > 1:
            joint, log_z = joint.logsumexp(1), log_z.logsumexp(1)
        nll = log_z.view(batch_shape) - joint.view(batch_shape)
        return TokenLoss(nll, log_z.view(batch_shape))

    def distribution(self, hidden: Tensor) -> Distribution:
        scores, mixture = self._scores(hidden)
        if self.num_mixtures == 1:
            return LatticeDistribution(scores.squeeze(-3))
        return MixtureDistribution(scores, mixture)

    def _scores(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Scores `(..., K, 24, 9)` and mixture logits `(..., K)`, zero when K = 1."""
        outputs = head_outputs(hidden, self.linear.weight, self.linear.bias)
        num_scores = self.num_mixtures * leech.DIM * NUM_VALUES
        scores = rearrange(
            outputs[..., :num_scores], "... (k i v) -> ... k i v", i=leech.DIM, v=NUM_VALUES
        )
        if self.num_mixtures == 1:
            return scores, outputs.new_zeros(*outputs.shape[:-1], 1)
        return scores, outputs[..., num_scores:]

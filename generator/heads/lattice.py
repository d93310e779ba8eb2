"""The lattice softmax: 24 x 9 scores per token, normalised exactly over the 196,560 codes.

p(c) is proportional to exp(sum_i l_i(c_i)). A mixture of K is p(k, c) proportional to
exp(m_k + sum_i l_ki(c_i)): each component is normalised over the lattice and has weight
softmax(m_k + log Z_k).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lambda24.common.config import config_class
from lambda24.generator.heads.base import Distribution, TokenLoss
from lambda24.generator.heads.lattice_distribution import LatticeDistribution, MixtureDistribution
from lambda24.generator.heads.leech_head import LeechHead
from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.lattices.softmax.groups import best_code_score
from lambda24.tokenizer.lattices.softmax.log_z import log_normalizer
from lambda24.tokenizer.lattices.softmax.tables import NUM_VALUES
from lambda24.tokenizer.tokens import TokenSpec

MAX_JOINT_ELEMENTS = 1 << 20  # tokens x components x codes at a time: 4 MiB


@config_class
class LatticeHeadConfig:
    """Config of `LatticeHead`; `num_mixtures` is K."""

    kind: Literal["lattice"] = "lattice"
    num_mixtures: int = Field(default=1, ge=1)


class LatticeHead(LeechHead):
    """Scores normalised over the lattice; K > 1 mixes as many of them.

    `TokenLoss.log_z` is the log normaliser of all scores, log sum_k exp(m_k) Z_k, so that
    `nll = log_z - log sum_k exp(m_k + sum_i l_ki(c_i))`. With K > 1, `uniform_nll` has no closed
    form and costs as much as a dense head of width 216 K.
    """

    def __init__(self, config: LatticeHeadConfig, width: int, spec: TokenSpec) -> None:
        super().__init__(config.kind, width, spec, config.num_mixtures)

    def loss(self, hidden: Tensor, tokens: Tensor, *, with_uniform: bool = False) -> TokenLoss:
        batch_shape = tokens.shape[:-1]
        scores, mixture = self.mixture_scores(hidden.flatten(0, -2))
        joint = mixture + self.token_scores(scores, tokens.flatten())  # (N, K)
        log_zs = mixture + log_normalizer(scores.flatten(0, 1)).view_as(mixture)
        log_z, score = log_zs.logsumexp(1), joint.logsumexp(1)
        mean = None
        if with_uniform:
            is_single = self.num_mixtures == 1
            mean = self.mean_score(scores.squeeze(1)) if is_single else self._mean(scores, mixture)
        return TokenLoss(
            nll=(log_z - score).view(batch_shape),
            log_z=log_z.view(batch_shape),
            uniform_nll=None if mean is None else (log_z - mean).view(batch_shape),
        )

    def distribution(self, hidden: Tensor) -> Distribution:
        scores, mixture = self.mixture_scores(hidden)
        if self.num_mixtures == 1:
            return LatticeDistribution(scores.squeeze(-3))
        return MixtureDistribution(scores, mixture)

    @torch.no_grad()
    def is_best(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Whether no code scores higher than the token, bool `(...)`."""
        if self.num_mixtures > 1:
            return super().is_best(hidden, tokens)
        scores = self.mixture_scores(hidden)[0].flatten(0, -4)  # (N, 1, 24, 9)
        own = self.token_scores(scores, tokens.flatten())[:, 0]
        # The same sums in another order: equal up to rounding.
        best = best_code_score(scores[:, 0])
        return (own >= best - 1e-5 * best.abs().clamp(min=1)).view(tokens.shape[:-1])

    def _mean(self, scores: Tensor, mixture: Tensor) -> Tensor:
        mean: Tensor = _MeanMixtureScore.apply(scores, mixture, self.cells)
        return mean


class _MeanMixtureScore(torch.autograd.Function):
    """Mean over all codes of log sum_k exp(m_k + sum_i l_ki(c_i)), `(N,)`, and its gradient."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, mixture: Tensor, cells: Tensor) -> Tensor:
        flat = scores.flatten(2)  # (N, K, 216)
        total = torch.zeros_like(mixture[:, 0])
        grad_scores, grad_mixture = torch.zeros_like(flat), torch.zeros_like(mixture)
        columns = NUM_VALUES * torch.arange(leech.DIM, device=cells.device)
        step = max(1, MAX_JOINT_ELEMENTS // max(1, mixture.numel()))
        with torch.autocast(scores.device.type, enabled=False):
            for codes in cells.split(step):
                onehot = flat.new_zeros(len(codes), flat.shape[2])  # (n, 216)
                onehot.scatter_(1, codes.long() + columns, 1.0)
                joint = flat @ onehot.T + mixture[..., None]  # (N, K, n)
                total += joint.logsumexp(1).sum(1)
                share = joint.softmax(1)
                grad_scores += share @ onehot
                grad_mixture += share.sum(2)
        ctx.save_for_backward(grad_scores.view_as(scores) / len(cells), grad_mixture / len(cells))
        return total / len(cells)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_scores, grad_mixture = ctx.saved_tensors
        return grad_scores * grad[:, None, None, None], grad_mixture * grad[:, None], None

"""Distributions of the lattice softmax: exact draws and guidance without the 196,560 logits."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Self

from lambda24.common.draws import inverse_cdf
from lambda24.generator.heads.base import CategoricalDistribution, Distribution, check_uniforms
from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.lattices.softmax.groups import NUM_UNIFORMS, draw_codes
from lambda24.tokenizer.lattices.softmax.log_z import log_normalizer
from lambda24.tokenizer.lattices.softmax.mixtures import mixture_code_scores
from lambda24.tokenizer.lattices.softmax.scores import code_scores


class ScoresDistribution(Distribution):
    """What distributions with one score per value of each coordinate share.

    Guidance and temperature act on the scores: each family is closed under both.

    Args:
        scores: `(..., 24, 9)` finite; column v + 4 belongs to the value v of a coordinate.
    """

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def guided(self, unconditional: Distribution, scale: float) -> Distribution:
        if not isinstance(unconditional, type(self)):
            return CategoricalDistribution(self.logits()).guided(unconditional, scale)
        return type(self)(scale * self.scores + (1 - scale) * unconditional.scores)

    def tempered(self, temperature: float) -> Self:
        return type(self)(self.scores / temperature)

    def logits(self) -> Tensor:
        logits = code_scores(self.scores.reshape(-1, *self.scores.shape[-2:]))
        return logits.view(*self.scores.shape[:-2], leech.NUM_CODES)


class LatticeDistribution(ScoresDistribution):
    """p(c) proportional to exp(sum_i scores_i(c_i)) over the codes."""

    @property
    def num_uniforms(self) -> int:
        """See `code_groups`."""
        return NUM_UNIFORMS

    def sample(self, uniforms: Tensor) -> Tensor:
        check_uniforms(uniforms, self.num_uniforms)
        flat_scores = self.scores.reshape(-1, *self.scores.shape[-2:])
        draws = draw_codes(flat_scores, uniforms.reshape(-1, NUM_UNIFORMS))
        return draws.view(*self.scores.shape[:-2], 1)


class MixtureDistribution(Distribution):
    """p(k, c) proportional to exp(mixture_k + sum_i scores_ki(c_i)), summed over k.

    Guidance and temperature leave the family and return dense logits.

    Args:
        scores: `(..., K, 24, 9)`.
        mixture: `(..., K)`.
    """

    def __init__(self, scores: Tensor, mixture: Tensor) -> None:
        self.scores = scores
        self.mixture = mixture

    @property
    def num_uniforms(self) -> int:
        """One for the component, then those of `LatticeDistribution`."""
        return 1 + NUM_UNIFORMS

    def guided(self, unconditional: Distribution, scale: float) -> Distribution:
        mixed = torch.lerp(unconditional.logits(), self.logits(), scale)
        return CategoricalDistribution(mixed)

    def tempered(self, temperature: float) -> Distribution:
        return CategoricalDistribution(self.logits() / temperature)

    def logits(self) -> Tensor:
        flat = self.scores.flatten(0, -4), self.mixture.flatten(0, -2)
        return mixture_code_scores(*flat).view(*self.mixture.shape[:-1], leech.NUM_CODES)

    def sample(self, uniforms: Tensor) -> Tensor:
        check_uniforms(uniforms, self.num_uniforms)
        scores, mixture = self.scores.double(), self.mixture.double()
        log_z = log_normalizer(scores.flatten(0, -3)).view_as(mixture)
        component = inverse_cdf(mixture + log_z, uniforms[..., 0])
        chosen = scores.take_along_dim(component[..., None, None, None], dim=-3).squeeze(-3)
        return LatticeDistribution(chosen).sample(uniforms[..., 1:])

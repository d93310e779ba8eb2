"""What a head is: hidden states to a training loss, or to a distribution over the codes of a token.

Shapes: W width of the hidden states, V codes of a codebook, G codebooks of a token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lambda24.common.draws import inverse_cdf

DENSE = 32  # tokens whose logits exist at a time: 24 MiB
HEAD_GAIN = 0.02  # head weights start at this fraction of the trunk's initial scale


class TokenLoss(NamedTuple):
    """Per-token loss, all `(...)` and differentiable; a tuple, into which FSDP can look.

    Args:
        nll: negative log-likelihood in nats; summed over the codebooks of a token.
        log_z: log normaliser of the unnormalised scores: `nll = log_z - score(token)`. Summed over
            the factors (codebooks, bits, coordinates) that are normalised each for itself.
        factor_squares: sum over those factors of their squared log normalisers; None when there is
            only one.
        uniform_nll: mean nll of all tokens of the codebooks, for label smoothing; None unless
            asked for.
    """

    nll: Tensor
    log_z: Tensor
    factor_squares: Tensor | None = None
    uniform_nll: Tensor | None = None

    @property
    def z_loss(self) -> Tensor:
        """The Z-loss of each token: squared log normalisers, which opposite factors cannot hide."""
        return self.log_z.square() if self.factor_squares is None else self.factor_squares

    def smoothed(self, label_smoothing: float) -> Tensor:
        """Cross-entropy with `(1 - e) onehot + e / V`, exactly."""
        if label_smoothing == 0:
            return self.nll
        assert self.uniform_nll is not None
        return (1 - label_smoothing) * self.nll + label_smoothing * self.uniform_nll


class Distribution(ABC):
    """A distribution over the codes of each token of a batch of shape `(...)`."""

    @property
    @abstractmethod
    def num_uniforms(self) -> int:
        """Uniform numbers that one draw of one token consumes."""

    @abstractmethod
    def guided(self, unconditional: Distribution, scale: float) -> Distribution:
        """Classifier-free guidance: logits `scale * self + (1 - scale) * unconditional`."""

    @abstractmethod
    def tempered(self, temperature: float) -> Distribution:
        """Logits divided by `temperature`."""

    @abstractmethod
    def logits(self) -> Tensor:
        """Log-probabilities up to a constant per token, `(..., V)`; `(..., G, V)` when G > 1."""

    @abstractmethod
    def sample(self, uniforms: Tensor) -> Tensor:
        """Draws tokens, int64 `(..., G)`, from `uniforms (..., num_uniforms)` in [0, 1)."""


class Head(nn.Module, ABC):
    """Turns hidden states `(..., W)` into losses and distributions; computes in float32."""

    is_linear: bool = False
    """Whether the parameters that a distribution is guided by are linear in the hidden states."""

    normalized_over_codes: ClassVar[bool] = True
    """Whether `loss` is a likelihood among the codes, and not among more than them."""

    @abstractmethod
    def loss(self, hidden: Tensor, tokens: Tensor, *, with_uniform: bool = False) -> TokenLoss:
        """Loss of `tokens`, int64 `(..., G)`, given `hidden (..., W)`.

        `with_uniform` asks for `TokenLoss.uniform_nll`.
        """

    @abstractmethod
    def distribution(self, hidden: Tensor) -> Distribution:
        """The distribution over codes given `hidden (..., W)`."""

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Distribution:
        """`Distribution.guided` of two hidden states `(..., W)`.

        Where logits are linear in the hidden states, these are mixed, which saves a product.
        """
        if self.is_linear:
            return self.distribution(torch.lerp(unconditional, conditional, scale))
        return self.distribution(conditional).guided(self.distribution(unconditional), scale)

    def code_loss(self, hidden: Tensor, tokens: Tensor) -> TokenLoss:
        """`loss`, normalised over the codes: what can be compared among heads."""
        return self.loss(hidden, tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """Log-probabilities over all codes up to a constant, `(..., V)`; see `Distribution`."""
        return self.distribution(hidden).logits()

    @torch.no_grad()
    def is_best(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Whether each token is the most likely one, bool `(...)`; looks at all codes."""
        rows = []
        parts = hidden.flatten(0, -2).split(DENSE), tokens.flatten(0, -2).split(DENSE)
        for states, chosen in zip(*parts, strict=True):
            best = self.logits(states).argmax(-1)
            rows.append((best.view_as(chosen) == chosen).all(-1))
        return torch.cat(rows).view(tokens.shape[:-1])


def head_linear(width: int, num_outputs: int) -> nn.Linear:
    """A float32 output layer that starts near zero: std 0.02 * sqrt(1 / (3 W)), zero bias."""
    linear = nn.Linear(width, num_outputs, dtype=torch.float32)
    linear.optimizer_role = "unembedding"  # type: ignore[assignment]
    std = HEAD_GAIN * (3 * width) ** -0.5
    nn.init.trunc_normal_(linear.weight, std=std, a=-3 * std, b=3 * std)
    nn.init.zeros_(linear.bias)
    return linear


def head_outputs(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`hidden @ weight.T + bias` in float32 (float64 if the weights are), whatever the autocast."""
    dtype = head_dtype(weight)
    with torch.autocast(hidden.device.type, enabled=False):
        return nn.functional.linear(hidden.to(dtype), weight.to(dtype), bias.to(dtype))


def head_dtype(weight: Tensor) -> torch.dtype:
    """What a head computes in: its weights' dtype, but not below float32."""
    return torch.promote_types(weight.dtype, torch.float32)


class CategoricalDistribution(Distribution):
    """Dense logits.

    Args:
        logits: `(..., V)`, or `(..., G, V)` with `num_codebooks` = G > 1; -inf forbids a code.
        num_codebooks: G, the number of indices of a token.
    """

    def __init__(self, logits: Tensor, num_codebooks: int = 1) -> None:
        if num_codebooks > 1 and (logits.ndim < 2 or logits.shape[-2] != num_codebooks):
            raise ValueError(
                f"logits of {num_codebooks} codebooks must be (..., {num_codebooks}, V), "
                f"got {tuple(logits.shape)}"
            )
        self._logits = logits
        self._num_codebooks = num_codebooks

    @property
    def num_uniforms(self) -> int:
        return self._num_codebooks

    def guided(self, unconditional: Distribution, scale: float) -> CategoricalDistribution:
        mixed = guide(self._logits, unconditional.logits(), scale)
        return CategoricalDistribution(mixed, self._num_codebooks)

    def tempered(self, temperature: float) -> CategoricalDistribution:
        return CategoricalDistribution(self._logits / temperature, self._num_codebooks)

    def logits(self) -> Tensor:
        return self._logits

    def sample(self, uniforms: Tensor) -> Tensor:
        check_uniforms(uniforms, self.num_uniforms)
        if self._num_codebooks > 1:
            return inverse_cdf(self._logits, uniforms)
        return inverse_cdf(self._logits, uniforms.squeeze(-1)).unsqueeze(-1)


def pad_codebooks(logits: Sequence[Tensor]) -> Tensor:
    """Logits of G codebooks, each `(..., V_g)`: `(..., V)` when G = 1, else `(..., G, max V_g)`.

    Codes that a smaller codebook does not have get -inf.
    """
    if len(logits) == 1:
        return logits[0]
    widest = max(group.shape[-1] for group in logits)
    padded = [
        nn.functional.pad(group, (0, widest - group.shape[-1]), value=-torch.inf)
        for group in logits
    ]
    return torch.stack(padded, dim=-2)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """`scale * conditional + (1 - scale) * unconditional`; a code that either forbids stays out."""
    mixed = scale * conditional + (1 - scale) * unconditional
    forbidden = (conditional == -torch.inf) | (unconditional == -torch.inf)
    return mixed.masked_fill(forbidden, -torch.inf)


def check_uniforms(uniforms: Tensor, num_uniforms: int) -> None:
    """Raises ValueError when the last axis is not the number of uniforms of a draw."""
    if uniforms.ndim == 0 or uniforms.shape[-1] != num_uniforms:
        raise ValueError(
            f"uniforms must end in an axis of num_uniforms {num_uniforms}, "
            f"got {tuple(uniforms.shape)}"
        )

"""The bitwise head (Infinity): independent logits for the bits of an index, for BSQ and LFQ codes.

Serves codebooks of 2^n codes; bit k of an index is 1 for the k-th lowest binary digit.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lambda24.common.config import config_class
from lambda24.generator.heads.base import (
    CategoricalDistribution,
    Distribution,
    Head,
    TokenLoss,
    check_uniforms,
    head_linear,
    head_outputs,
    pad_codebooks,
)
from lambda24.tokenizer.tokens import TokenSpec

MAX_DENSE_BITS = 20  # a row of 2^20 logits is 4 MiB


@config_class
class BitsHeadConfig:
    """Config of `BitsHead`."""

    kind: Literal["bits"] = "bits"


class BitsHead(Head):
    """One linear layer W -> all bits of a token; binary cross-entropy summed over bits.

    `TokenLoss.log_z` is the sum of the bits' log normalisers log(1 + exp(l)).

    Args:
        config: has no options.
        width: W, channels of the hidden states.
        spec: gives the codebook sizes.

    Raises:
        ValueError: a codebook size that is not a power of two.
    """

    is_linear = True

    def __init__(self, config: BitsHeadConfig, width: int, spec: TokenSpec) -> None:
        super().__init__()
        sizes = spec.codebook_sizes
        if any(size < 2 or size & (size - 1) for size in sizes):
            raise ValueError(
                f"the {config.kind} head needs codebook_sizes that are powers of two, got {sizes}"
            )
        self.num_bits = tuple(size.bit_length() - 1 for size in sizes)
        self.linear = head_linear(width, sum(self.num_bits))

    def loss(self, hidden: Tensor, tokens: Tensor, *, with_uniform: bool = False) -> TokenLoss:
        logits = self._bit_logits(hidden)
        log_zs = F.softplus(logits)  # (..., bits)
        log_z = log_zs.sum(-1)
        return TokenLoss(
            nll=log_z - (logits * self._digits(tokens)).sum(-1),
            log_z=log_z,
            factor_squares=log_zs.square().sum(-1),
            uniform_nll=log_z - logits.sum(-1) / 2 if with_uniform else None,
        )

    def distribution(self, hidden: Tensor) -> BitsDistribution:
        return BitsDistribution(self._bit_logits(hidden), self.num_bits)

    @torch.no_grad()
    def is_best(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Whether every bit of the token is the more likely one, bool `(...)`."""
        return ((self._bit_logits(hidden) > 0) == self._digits(tokens).bool()).all(-1)

    def _digits(self, tokens: Tensor) -> Tensor:
        """Bits of tokens `(..., G)`, lowest first, `(..., sum of num_bits)`."""
        digits = [
            tokens[..., group, None] >> torch.arange(count, device=tokens.device) & 1
            for group, count in enumerate(self.num_bits)
        ]
        return torch.cat(digits, dim=-1)

    def _bit_logits(self, hidden: Tensor) -> Tensor:
        return head_outputs(hidden, self.linear.weight, self.linear.bias)


class BitsDistribution(Distribution):
    """Independent bits; closed under guidance and temperature.

    Args:
        bit_logits: log-odds of a set bit, `(..., sum of num_bits)`, codebook after codebook.
        num_bits: bits of each of the G codebooks.
    """

    def __init__(self, bit_logits: Tensor, num_bits: tuple[int, ...]) -> None:
        self.bit_logits = bit_logits
        self.num_bits = num_bits

    @property
    def num_uniforms(self) -> int:
        """One per bit."""
        return sum(self.num_bits)

    def guided(self, unconditional: Distribution, scale: float) -> Distribution:
        if not isinstance(unconditional, BitsDistribution):
            dense = CategoricalDistribution(self.logits(), len(self.num_bits))
            return dense.guided(unconditional, scale)
        mixed = scale * self.bit_logits + (1 - scale) * unconditional.bit_logits
        return BitsDistribution(mixed, self.num_bits)

    def tempered(self, temperature: float) -> BitsDistribution:
        return BitsDistribution(self.bit_logits / temperature, self.num_bits)

    def logits(self) -> Tensor:
        """See `Distribution.logits`.

        Raises:
            ValueError: a codebook of more than 2^20 codes.
        """
        if max(self.num_bits) > MAX_DENSE_BITS:
            raise ValueError(
                f"dense logits need at most {MAX_DENSE_BITS} bits a codebook, got {self.num_bits}"
            )
        groups = []
        for bits in self.bit_logits.split(self.num_bits, dim=-1):
            scores = torch.zeros_like(bits[..., :1])
            for bit in bits.unbind(-1):
                scores = torch.cat([scores, scores + bit[..., None]], dim=-1)
            groups.append(scores)
        return pad_codebooks(groups)

    def sample(self, uniforms: Tensor) -> Tensor:
        check_uniforms(uniforms, self.num_uniforms)
        digits = (uniforms.double() < self.bit_logits.double().sigmoid()).long()
        tokens = [
            (group << torch.arange(group.shape[-1], device=group.device)).sum(-1)
            for group in digits.split(self.num_bits, dim=-1)
        ]
        return torch.stack(tokens, dim=-1)

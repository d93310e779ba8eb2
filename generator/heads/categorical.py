"""The dense head: one linear layer W -> V per codebook and a softmax over its codes.

The loss works on chunks of tokens and keeps only log Z between forward and backward, so that the
(tokens, V) logits never exist: at V = 196,560 one row of them is 0.75 MiB.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from common.config import config_class
from generator.heads.base import (
    CategoricalDistribution,
    Head,
    TokenLoss,
    head_dtype,
    head_linear,
    head_outputs,
    pad_codebooks,
)
from tokenizer.tokens import TokenSpec


@config_class
class CategoricalHeadConfig:
    """Config of `CategoricalHead`; `chunk_size` is the number of tokens per block of logits."""

    kind: Literal["categorical"] = "categorical"
    chunk_size: int = Field(default=256, ge=1)


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, chunk_size: int
) -> TokenLoss:
    """Softmax cross-entropy of a linear layer without its logits.

    Args:
        hidden: `(N, W)`.
        weight: `(V, W)`; products and the gradient's sums over chunks are float32 or better.
        bias: `(V,)`.
        tokens: `(N,)` int64.
        chunk_size: tokens per block of logits.

    Returns:
        nll and log_z `(N,)`; any function of the two may be differentiated (once).
    """
    dtype = head_dtype(weight)
    with torch.autocast(hidden.device.type, enabled=False):
        nll, log_z = _ChunkedCrossEntropy.apply(
            hidden.to(dtype), weight.to(dtype), bias.to(dtype), tokens, chunk_size
        )
    return TokenLoss(nll, log_z)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        log_z = hidden.new_empty(len(hidden))
        target = hidden.new_empty(len(hidden))
        buffer = hidden.new_empty(min(chunk_size, len(hidden)), len(weight))
        for start in range(0, len(hidden), chunk_size):
            rows = slice(start, start + chunk_size)
            logits = _linear_into(buffer, hidden[rows], weight, bias)  # (n, V)
            target[rows] = logits.gather(1, tokens[rows, None]).squeeze(1)
            peak = logits.amax(1, keepdim=True)
            total = logits.sub_(peak).exp_().sum(1)
            log_z[rows] = total.log_() + peak.squeeze(1)
        ctx.save_for_backward(hidden, weight, bias, tokens, log_z)
        ctx.chunk_size = chunk_size
        return log_z - target, log_z.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_nll: Tensor, grad_log_z: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, tokens, log_z = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        buffer = hidden.new_empty(min(ctx.chunk_size, len(hidden)), len(weight))
        for start in range(0, len(hidden), ctx.chunk_size):
            rows = slice(start, start + ctx.chunk_size)
            logits = _linear_into(buffer, hidden[rows], weight, bias)
            # d nll = softmax - onehot, d log_z = softmax
            grad = logits.sub_(log_z[rows, None]).exp_()
            grad.mul_((grad_nll[rows] + grad_log_z[rows])[:, None])
            grad.scatter_add_(1, tokens[rows, None], -grad_nll[rows, None])
            torch.mm(grad, weight, out=grad_hidden[rows])
            grad_weight.addmm_(grad.T, hidden[rows])
            grad_bias.add_(grad.sum(0))
        return grad_hidden, grad_weight, grad_bias, None, None


def _linear_into(buffer: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, hidden, weight.T, out=buffer[: len(hidden)])


class CategoricalHead(Head):
    """Independent softmax per codebook.

    Args:
        config: chunking.
        width: W, channels of the hidden states.
        spec: gives the codebook sizes.
    """

    is_linear = True

    def __init__(self, config: CategoricalHeadConfig, width: int, spec: TokenSpec) -> None:
        super().__init__()
        self.chunk_size = config.chunk_size
        self.linears = nn.ModuleList(head_linear(width, size) for size in spec.codebook_sizes)

    def loss(self, hidden: Tensor, tokens: Tensor, *, with_uniform: bool = False) -> TokenLoss:
        batch_shape = tokens.shape[:-1]
        losses = [
            chunked_cross_entropy(
                hidden.flatten(0, -2), weight, bias, tokens[..., group].flatten(), self.chunk_size
            )
            for group, (weight, bias) in enumerate(self._layers())
        ]
        nll = torch.stack([loss.nll for loss in losses]).sum(0)
        log_zs = torch.stack([loss.log_z for loss in losses])  # (G, N)
        log_z = log_zs.sum(0).view(batch_shape)
        # The mean logit of all codes is a product with the mean row.
        means = [
            head_outputs(hidden, weight.mean(0, keepdim=True), bias.mean(0, keepdim=True))
            for weight, bias in (self._layers() if with_uniform else [])
        ]
        return TokenLoss(
            nll=nll.view(batch_shape),
            log_z=log_z,
            factor_squares=log_zs.square().sum(0).view(batch_shape),
            uniform_nll=log_z - torch.cat(means, dim=-1).sum(-1) if with_uniform else None,
        )

    def distribution(self, hidden: Tensor) -> CategoricalDistribution:
        groups = [head_outputs(hidden, weight, bias) for weight, bias in self._layers()]
        return CategoricalDistribution(pad_codebooks(groups), len(groups))

    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        return [(weight, bias) for weight, bias in map(nn.Module.parameters, self.linears)]

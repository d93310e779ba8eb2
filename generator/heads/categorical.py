"""The dense head: one linear layer W -> V per codebook and a softmax over its codes.

The loss works on blocks of tokens and codes and keeps only log Z between forward and backward, so
that the (tokens, V) logits never exist: at V = 196,560 one row of them is 0.75 MiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lambda24.common.config import config_class
from lambda24.generator.heads.base import (
    CategoricalDistribution,
    Head,
    TokenLoss,
    head_dtype,
    head_linear,
    head_outputs,
    pad_codebooks,
)
from lambda24.tokenizer.tokens import TokenSpec

# Of a block of logits: on a CPU it stays in the cache, elsewhere it fills the device.
BLOCK_BYTES = {"cpu": 4 << 20, "other": 64 << 20}


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
    """Blocks of tokens within blocks of codes, so that each code's gradient is written once.

    With P = softmax and g the gradients of nll and log_z: d hidden = (g_nll + g_log_z) P W - g_nll
    W[token], and likewise for W. Rows are scaled before and behind the products, and the tokens'
    own rows are subtracted at the end: nothing but the exponential passes over a block.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        peak = hidden.new_full((len(hidden),), -torch.inf)
        total = torch.zeros_like(peak)  # sum of exp(logit - peak) over the codes so far
        buffer = _block_buffer(hidden, weight, chunk_size)
        for codes in _slices(len(weight), buffer.shape[1]):
            for rows in _slices(len(hidden), chunk_size):
                logits = _corner(buffer, rows, codes)
                torch.addmm(bias[codes], hidden[rows], weight[codes].T, out=logits)
                higher = torch.maximum(peak[rows], logits.amax(1))
                part = logits.sub_(higher[:, None]).exp_().sum(1)
                total[rows] = total[rows] * (peak[rows] - higher).exp() + part
                peak[rows] = higher
        log_z = total.log_().add_(peak)
        target = (hidden * weight[tokens]).sum(1) + bias[tokens]
        ctx.save_for_backward(hidden, weight, bias, tokens, log_z)
        ctx.chunk_size = chunk_size
        return log_z - target, log_z.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_nll: Tensor, grad_log_z: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, tokens, log_z = ctx.saved_tensors
        gain = grad_nll + grad_log_z
        scaled = hidden * gain[:, None]
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.empty_like(weight) if len(hidden) else torch.zeros_like(weight)
        grad_bias = torch.zeros_like(bias)
        buffer = _block_buffer(hidden, weight, ctx.chunk_size)
        for codes in _slices(len(weight), buffer.shape[1]):
            own = grad_weight[codes]
            for rows in _slices(len(hidden), ctx.chunk_size):
                chances = _corner(buffer, rows, codes)
                torch.sub(bias[codes], log_z[rows, None], out=chances)
                chances.addmm_(hidden[rows], weight[codes].T).exp_()
                grad_hidden[rows].addmm_(chances, weight[codes])
                own.addmm_(chances.T, scaled[rows], beta=0 if rows.start == 0 else 1)
                grad_bias[codes].addmv_(chances.T, gain[rows])
        grad_hidden.mul_(gain[:, None]).addcmul_(weight[tokens], grad_nll[:, None], value=-1)
        _add_rows(grad_weight, tokens, hidden * -grad_nll[:, None])
        _add_rows(grad_bias, tokens, -grad_nll)
        return grad_hidden, grad_weight, grad_bias, None, None


def _add_rows(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """`total[rows] += values`, rows repeating, by the form that each device sums in fixed order."""
    if total.device.type == "cpu":
        total.index_add_(0, rows, values)
    else:
        total.index_put_((rows,), values, accumulate=True)


def _block_buffer(hidden: Tensor, weight: Tensor, chunk_size: int) -> Tensor:
    """Room for a block of logits: up to `chunk_size` tokens, and codes by `BLOCK_BYTES`."""
    rows = max(1, min(chunk_size, len(hidden)))
    limit = BLOCK_BYTES["cpu" if hidden.device.type == "cpu" else "other"]
    codes = max(1, min(len(weight), limit // (rows * hidden.element_size())))
    return hidden.new_empty(rows, codes)


def _corner(buffer: Tensor, rows: slice, codes: slice) -> Tensor:
    """The part of the buffer, contiguous, for a block that may be smaller."""
    shape = rows.stop - rows.start, codes.stop - codes.start
    return buffer.view(-1)[: shape[0] * shape[1]].view(shape)


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


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

"""The log normaliser of the lattice softmax, differentiable and exact for all finite scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lambda24.tokenizer.lattices.softmax.groups import CodeGroups
from lambda24.tokenizer.lattices.softmax.sums import log_partition

CPU_CHUNK, DEVICE_CHUNK = 256, 8192  # tokens per block of sums: second-level cache; launch overhead
LOG_CHUNK = 64  # tokens per block of sums of logs
# Nats, summed over coordinates, from which a CPU works in float64: many float32 products would be
# subnormal numbers, which take it several times as long as others.
MAX_CPU_RANGE = 200.0


def log_normalizer(scores: Tensor) -> Tensor:
    """log sum over codes of exp(sum_i scores_i(c_i)), `(N, 24, 9)` -> `(N,)`; differentiable once.

    Exact for all finite scores: rows whose sums could underflow are computed again in float64 and,
    if that is not enough, by log-sum-exp. Waits for the device to learn which.
    """
    if torch.is_grad_enabled() and scores.requires_grad:
        log_z: Tensor = _LogNormalizer.apply(scores)
        return log_z
    return _log_partition(scores, with_marginals=False)[0]


class _LogNormalizer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        log_z, marginals = _log_partition(scores, with_marginals=True)
        ctx.save_for_backward(marginals)
        return log_z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_log_z: Tensor) -> Tensor:
        (marginals,) = ctx.saved_tensors
        return marginals * grad_log_z[:, None, None]


def _log_partition(scores: Tensor, *, with_marginals: bool) -> tuple[Tensor, Tensor | None]:
    """Log normaliser and marginals of every row, by the first way that is safe for it."""
    log_z = torch.full_like(scores[:, 0, 0], torch.nan)
    marginals = torch.empty_like(scores) if with_marginals else None
    ways = [(torch.float64, _by_sums), (torch.float64, _by_logs)]
    if scores.dtype == torch.float32:
        ways.insert(0, (torch.float32, _by_sums))
    for dtype, way in ways:
        todo = log_z.isnan()
        if dtype == torch.float32 and scores.device.type == "cpu":
            todo &= (scores.amax(2) - scores.amin(2)).sum(1) < MAX_CPU_RANGE
        rows = todo.nonzero()[:, 0]
        if not len(rows):
            continue
        chosen = scores if len(rows) == len(scores) else scores[rows]
        some_log_z, some_marginals = way(chosen.to(dtype), with_marginals)
        log_z[rows] = some_log_z.to(log_z.dtype)
        if marginals is not None and some_marginals is not None:
            marginals[rows] = some_marginals.to(marginals.dtype)
    return log_z, marginals


def _by_sums(scores: Tensor, with_marginals: bool) -> tuple[Tensor, Tensor | None]:
    chunk_size = CPU_CHUNK if scores.device.type == "cpu" else DEVICE_CHUNK
    return log_partition(scores, chunk_size, with_marginals=with_marginals)


def _by_logs(scores: Tensor, with_marginals: bool) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp throughout: tens of times slower, and never underflows."""
    log_z = scores.new_empty(len(scores))
    marginals = torch.empty_like(scores) if with_marginals else None
    for start in range(0, len(scores), LOG_CHUNK):
        rows = slice(start, start + LOG_CHUNK)
        if marginals is None:
            log_z[rows] = CodeGroups.of(scores[rows]).log_z()
            continue
        with torch.inference_mode(False), torch.enable_grad():
            leaf = scores[rows].detach().clone().requires_grad_()
            chunk = CodeGroups.of(leaf).log_z()
            (marginals[rows],) = torch.autograd.grad(chunk.sum(), leaf)
        log_z[rows] = chunk.detach()
    return log_z, marginals

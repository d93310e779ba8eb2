"""The protocol of every quantizer: latents `(..., D)` in, codes and int64 indices `(..., G)` out.

Channel-last, float32 inside (autocast is switched off). Only `init_from_data` and `after_step`
change state; `forward` may add to pending statistics that `after_step` applies, `encode` and
`decode` never do. Pyramids, gains, projections to D channels and optimizers live elsewhere.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

Collective = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Quantized:
    """Result of one quantization.

    Args:
        z_q: `(..., D)` the code's value with the estimator's gradient to z (for soft estimators to
            the codebook too).
        indices: `(..., G)` int64.
        code: `(..., D)` the same value with the codebook's gradient only; equals `decode(indices)`.
        losses: unweighted scalars to minimise; `Quantizer.total_loss` weighs them.
        stats: detached scalars for logging.
    """

    z_q: Tensor
    indices: Tensor
    code: Tensor
    losses: dict[str, Tensor]
    stats: dict[str, Tensor]


class Quantizer(nn.Module, ABC):
    """Maps vectors to the nearest of finitely many codes.

    Args:
        dim: channels D of a latent and of a code.
        codebook_sizes: number of codes of each of the G codebooks.
        loss_weights: weight of each entry of `Quantized.losses`.
        code_norm: length of every code, from which a residual pyramid's gains start; None where
            lengths differ or learn.
        has_learned_codebook: codes change during training.

        passes_per_batch: how many training passes a batch makes through this quantizer: the scales
            of a pyramid.
        reduce_mean: averages a tensor over processes (differentiable).
        gather: joins the rows of all processes (not differentiable).
    """

    def __init__(
        self,
        dim: int,
        codebook_sizes: tuple[int, ...],
        *,
        loss_weights: Mapping[str, float],
        code_norm: float | None = None,
        has_learned_codebook: bool = False,
        passes_per_batch: int = 1,
        reduce_mean: Collective | None = None,
        gather: Collective | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.codebook_sizes = codebook_sizes
        self.loss_weights = dict(loss_weights)
        self.code_norm = code_norm
        self.has_learned_codebook = has_learned_codebook
        self.passes_per_batch = passes_per_batch
        self.reduce_mean = reduce_mean or process_mean
        self.gather = gather or process_gather

    @property
    def num_codebooks(self) -> int:
        """G, the number of indices of one token."""
        return len(self.codebook_sizes)

    @property
    def bits(self) -> float:
        """Bits of one token at a fixed rate: the sum of log2 of the codebook sizes."""
        return sum(math.log2(size) for size in self.codebook_sizes)

    def forward(self, z: Tensor) -> Quantized:
        """Quantizes `z (..., D)`; outputs are float32 whatever the input.

        Raises:
            ValueError: the last dimension of z is not D, or z is not floating point or not finite.
        """
        self._check_latent(z)
        with record_function("quantizer"), torch.autocast(z.device.type, enabled=False):
            z = z.float()
            quantized = self._quantize(z)
            stats = _agreement(z.detach(), quantized.code.detach())
        quantized.stats.update({k: v for k, v in stats.items() if k not in quantized.stats})
        return quantized

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Indices `(..., G)` of `z (..., D)`: those of `forward`, without losses or gradients."""
        self._check_latent(z)
        with record_function("quantizer"), torch.autocast(z.device.type, enabled=False):
            return self._encode(z.float())

    def decode(self, indices: Tensor) -> Tensor:
        """Codes `(..., D)` of `indices (..., G)`, with the codebook's gradient where it has one.

        Raises:
            ValueError: the last dimension is not G or the dtype is not int64.
        """
        if indices.ndim < 1 or indices.shape[-1] != self.num_codebooks:
            raise ValueError(
                f"indices must end in G = {self.num_codebooks}, got shape {tuple(indices.shape)}"
            )
        if indices.dtype != torch.int64:
            raise ValueError(f"indices must be int64, got {indices.dtype}")
        with torch.autocast(indices.device.type, enabled=False):
            return self._decode(indices)

    def total_loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of `losses`; subclasses with ramps scale it by the scheduled step."""
        terms = [self.loss_weights[name] * value for name, value in losses.items()]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def init_from_data(self, z: Tensor) -> None:
        """Places the codebook on the data `(..., D)`; does nothing the second time."""

    def schedule(self, step: int, total: int) -> None:
        """Sets temperatures and ramps: a pure function of the step, so a resumed run agrees."""

    def after_step(self) -> None:
        """Applies pending statistics; call exactly once after each optimizer step."""

    @abstractmethod
    def _quantize(self, z: Tensor) -> Quantized: ...

    @abstractmethod
    def _encode(self, z: Tensor) -> Tensor: ...

    @abstractmethod
    def _decode(self, indices: Tensor) -> Tensor: ...

    def _check_latent(self, z: Tensor) -> None:
        if z.ndim < 1 or z.shape[-1] != self.dim:
            raise ValueError(f"z must end in D = {self.dim} channels, got shape {tuple(z.shape)}")
        if not z.is_floating_point():
            raise ValueError(f"z must be floating point, got {z.dtype}")
        if not bool(z.isfinite().all()):
            raise ValueError("z must be finite, got NaN or infinity")


def straight_through(code: Tensor, path: Tensor) -> Tensor:
    """The exact value of `code` with the gradient of `path`.

    Written as code + (path - path) because path + (code - path) loses the code when path is large.
    """
    return code.detach() + (path - path.detach())


def unit(z: Tensor) -> Tensor:
    """z / |z| along the last dimension, safe for tiny and huge entries; zero stays zero.

    The gradient is the exact Jacobian; a zero row gets none.
    """
    # The scale is a constant of a scale-invariant function: detaching it leaves the gradient exact.
    largest = z.detach().abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(largest > 0, 1 / largest.clamp_min(1e-30), 0.0)
    return F.normalize(z * inverse, dim=-1)


def process_mean(values: Tensor) -> Tensor:
    """Mean over processes whose gradient is again a mean, as DistributedDataParallel needs.

    Without a process group of several it is the identity.
    """
    if not _is_distributed():
        return values
    return cast(Tensor, _ProcessMean.apply(values))


def process_gather(rows: Tensor) -> Tensor:
    """Rows `(n_r, ...)` of all processes in rank order; n_r may differ. Not differentiable.

    Without a process group of several it is the identity.
    """
    if not _is_distributed():
        return rows
    rows = rows.detach().contiguous()
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    longest = max(int(c) for c in counts)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(c)] for part, c in zip(gathered, counts, strict=True)])


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _ProcessMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _all_reduced_mean(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _all_reduced_mean(grads[0])


def _all_reduced_mean(values: Tensor) -> Tensor:
    total = values.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _agreement(z: Tensor, code: Tensor) -> dict[str, Tensor]:
    cosine = (unit(z) * unit(code)).sum(-1).mean()
    return {"cosine": cosine, "squared_error": (z - code).square().mean()}

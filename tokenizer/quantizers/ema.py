"""Vector quantization with a table of moving averages (VQ-VAE-2, arXiv 1906.00446).

Codes are the averages of the latents that chose them; codes that nothing chooses are moved onto
data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lambda24.common.config import Count, Size, config_class
from lambda24.tokenizer.quantizers.base import Quantized, Quantizer
from lambda24.tokenizer.quantizers.codebooks import (
    Estimator,
    assignment_sums,
    check_revival,
    check_table,
    data_codes,
    estimate,
    nearest_code,
    random_codes,
)
from lambda24.tokenizer.quantizers.revival import (
    Candidates,
    counts_towards_training,
)


@config_class
class EMAConfig:
    """Codebook of moving averages.

    Args:
        decay: of the averages, per optimizer step.
        smoothing: Laplace smoothing of the usage, in units of uniform usage.
        revival_threshold: codes whose average usage, in units of uniform usage of a scale, falls
            below this are moved onto random latents of the step; None never does.
        max_candidates: latents of a step that are kept for revival.
        kmeans_iterations: Lloyd iterations of `init_from_data`; 0 takes random rows of the data.
            Stage 1 never calls that, only the comparison of quantizers does: placing codebooks on
            data inside the pyramid was measured to be worse.
    """

    kind: Literal["vq_ema"] = "vq_ema"
    dim: Size = 32
    codebook_size: Count = 16384
    decay: float = 0.99
    smoothing: float = 1e-5
    revival_threshold: float | None = 0.1
    max_candidates: int = 4096
    estimator: Estimator = "straight_through"
    commitment_weight: float = 0.25
    kmeans_iterations: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_table(self.dim, self.codebook_size)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}")
        check_revival(self.revival_threshold)


class EMAVectorQuantizer(Quantizer):
    """Nearest row of a table that follows the data. Loss: `commitment`.

    Statistics wait in `_pending` until `after_step`, so the value of a training forward equals
    `decode(indices)`, and micro-batches, scales of a pyramid and processes count once each. A
    forward counts in training mode with gradients enabled and outside of backward: that leaves
    out the recomputation of non-reentrant gradient checkpointing and passes under no_grad.
    (Reentrant checkpointing runs its first pass under no_grad, so it would never count: keep the
    quantizer outside of it.)
    """

    def __init__(self, config: EMAConfig, *, passes_per_batch: int = 1) -> None:
        super().__init__(
            config.dim,
            (config.codebook_size,),
            passes_per_batch=passes_per_batch,
            loss_weights={"commitment": config.commitment_weight},
            has_learned_codebook=True,
        )
        self.config = config
        codebook = random_codes(config.codebook_size, config.dim, config.seed)
        self.register_buffer("codebook", codebook)
        # Averages in units of uniform usage (count * K / tokens), free of the batch size.
        self.register_buffer("usage", torch.ones(config.codebook_size))
        self.register_buffer("sums", codebook.clone())
        self.register_buffer("num_updates", torch.tensor(0))
        self.register_buffer("initialized", torch.tensor(False))
        self.codebook: Tensor
        self.usage: Tensor
        self.sums: Tensor
        self.num_updates: Tensor
        self.initialized: Tensor
        self._pending: _Pending | None = None

    @torch.no_grad()
    def init_from_data(self, z: Tensor) -> None:
        if self.initialized:
            return
        self.codebook.copy_(
            data_codes(self, z, iterations=self.config.kmeans_iterations, seed=self.config.seed)
        )
        self.sums.copy_(self.codebook)
        self.usage.fill_(1)
        self.initialized.fill_(True)

    @torch.no_grad()
    def after_step(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        size = self.config.codebook_size
        # One collective: sums, counts and the number of tokens share a tensor.
        totals = torch.cat([pending.sums, pending.counts[:, None]], dim=1)
        totals = self.reduce_mean(totals) * size
        totals = totals / (totals[:, -1].sum() / size)
        self.sums.lerp_(totals[:, :-1], 1 - self.config.decay)
        self.usage.lerp_(totals[:, -1], 1 - self.config.decay)
        self._revive(pending.candidates)
        smoothing = self.config.smoothing
        total = self.usage.sum()
        usage = (self.usage + smoothing) / (total + size * smoothing) * total
        self.codebook.copy_(self.sums / usage[:, None])
        self.num_updates += 1

    def _revive(self, candidates: Candidates) -> None:
        if self.config.revival_threshold is None:
            return
        threshold = self.config.revival_threshold / self.passes_per_batch
        dead = (self.usage < threshold).nonzero().squeeze(1)
        # Usage is the same on every process, so all of them take part in the collective or none.
        if len(dead):
            # As if they had the uniform usage of one scale.
            self.usage[dead] = 1 / self.passes_per_batch
            places = candidates.take(len(dead), self, self.config.max_candidates)
            self.sums[dead] = places / self.passes_per_batch

    def _quantize(self, z: Tensor) -> Quantized:
        indices = self._encode(z.detach())
        code = self._decode(indices)
        if counts_towards_training(self):
            self._accumulate(z.detach().reshape(-1, self.dim), indices.reshape(-1))
        losses = {"commitment": F.mse_loss(z, code)}
        return Quantized(estimate(self.config.estimator, code, z), indices, code, losses, {})

    def _accumulate(self, z: Tensor, indices: Tensor) -> None:
        counts, sums = assignment_sums(z, indices, self.config.codebook_size)
        # Every pass has the same weight: a code of coarse scales is rare among tokens, not dead.
        counts, sums, limit = counts / len(z), sums / len(z), self.config.max_candidates
        before = self._pending
        candidates = Candidates.draw(
            z,
            seed=self.config.seed,
            step=self.num_updates,
            number=0 if before is None else before.passes,
            limit=limit,
        )
        if before is None:
            self._pending = _Pending(counts, sums, candidates, 1)
            return
        self._pending = _Pending(
            before.counts + counts,
            before.sums + sums,
            candidates.merge(before.candidates, limit),
            before.passes + 1,
        )

    def _encode(self, z: Tensor) -> Tensor:
        return nearest_code(z, self.codebook.float()).unsqueeze(-1)

    def _decode(self, indices: Tensor) -> Tensor:
        return F.embedding(indices.squeeze(-1), self.codebook.float())


@dataclass(frozen=True)
class _Pending:
    counts: Tensor  # (K,)
    sums: Tensor  # (K, D)
    candidates: Candidates
    passes: int

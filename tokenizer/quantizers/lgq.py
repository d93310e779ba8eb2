"""LGQ (arXiv 2602.16086): hard codes whose gradient comes from a soft assignment to all codes.

Responsibilities p = softmax(-|z - e_k|² / tau); the value is the nearest code, the gradient that of
sum_k p_k e_k. Memory grows with a chunk of tokens times K, never with all tokens times K.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lambda24.common.config import Count, Size, config_class
from lambda24.tokenizer.quantizers.base import Quantized, Quantizer, straight_through
from lambda24.tokenizer.quantizers.codebooks import (
    check_revival,
    check_table,
    data_codes,
    nearest_code,
    random_codes,
    table_parameter,
)
from lambda24.tokenizer.quantizers.revival import Revival


@config_class
class LGQConfig:
    """Learned codebook with a soft gradient.

    Args:
        temperature_start: tau at the first step, in units of the mean squared distance from the
            latents to their nearest codes; an absolute tau would depend on the latent's scale.
        temperature_end: tau at the last step; linear in between.
        estimator: "soft" is LGQ's; "identity" keeps its losses with the straight-through gradient.
        distortion_weight: of the mean squared difference of z_q and z, towards both.
        peak_weight: of 1 - sum_k p_k², a token's indecision.
        usage_weight: of K sum_k u_k² - 1, the unevenness of the mean responsibilities u.
        kmeans_iterations: Lloyd iterations of `init_from_data`; 0 takes random rows, as published.
            Stage 1 never calls that, only the comparison of quantizers does: placing codebooks on
            data inside the pyramid was measured to be worse.
        revival_threshold: codes whose average usage, in units of uniform usage of a scale, falls
            below this are moved onto random latents of the step; None never does.
        revival_decay: of that average, per optimizer step.
        chunk_elements: responsibilities held at once, in numbers; changes memory, not results.
    """

    kind: Literal["lgq"] = "lgq"
    dim: Size = 32
    codebook_size: Count = 16384
    temperature_start: float = 0.5
    temperature_end: float = 0.05
    estimator: Literal["soft", "identity"] = "soft"
    distortion_weight: float = 1.0
    peak_weight: float = 0.005
    usage_weight: float = 0.005
    kmeans_iterations: int = 0
    revival_threshold: float | None = None
    revival_decay: float = 0.99
    chunk_elements: int = 2**24
    seed: int = 0

    def __post_init__(self) -> None:
        check_table(self.dim, self.codebook_size)
        check_revival(self.revival_threshold, self.revival_decay)
        if min(self.temperature_start, self.temperature_end) <= 0:
            raise ValueError(
                "temperature_start and temperature_end must be positive, got "
                f"{self.temperature_start} and {self.temperature_end}"
            )
        if self.chunk_elements < 1:
            raise ValueError(f"chunk_elements must be positive, got {self.chunk_elements}")


class LGQ(Quantizer):
    """Nearest row of a learned table, trained through soft assignments.

    Losses: `distortion`, `peak`, `usage` (see the config). tau follows the distances of each
    call, so every scale of a pyramid has its own and nothing needs to be stored or restored.
    """

    def __init__(self, config: LGQConfig, *, passes_per_batch: int = 1) -> None:
        super().__init__(
            config.dim,
            (config.codebook_size,),
            passes_per_batch=passes_per_batch,
            loss_weights={
                "distortion": config.distortion_weight,
                "peak": config.peak_weight,
                "usage": config.usage_weight,
            },
            has_learned_codebook=True,
        )
        self.config = config
        self.temperature = config.temperature_start
        self.codebook = table_parameter(random_codes(config.codebook_size, config.dim, config.seed))
        self.register_buffer("initialized", torch.tensor(False))
        self.initialized: Tensor
        self.revival = Revival.of(
            config.codebook_size,
            threshold=config.revival_threshold,
            decay=config.revival_decay,
            seed=config.seed,
        )

    def schedule(self, step: int, total: int) -> None:
        progress = min(1.0, step / max(1, total - 1))
        start, end = self.config.temperature_start, self.config.temperature_end
        self.temperature = start + (end - start) * progress

    @torch.no_grad()
    def init_from_data(self, z: Tensor) -> None:
        if self.initialized:
            return
        iterations, seed = self.config.kmeans_iterations, self.config.seed
        self.codebook.copy_(data_codes(self, z, iterations=iterations, seed=seed))
        self.initialized.fill_(True)

    def _quantize(self, z: Tensor) -> Quantized:
        indices = self._encode(z.detach())
        code = self._decode(indices)
        if self.revival is not None:
            self.revival.observe(self, z, indices)
        rows, hard = z.reshape(-1, self.dim), code.detach().reshape(-1, self.dim)
        tau = self._tau(rows.detach(), hard)
        soft, usage, peak = soft_assignment(
            rows, self.codebook.float(), tau, self.config.chunk_elements
        )
        path = z if self.config.estimator == "identity" else soft.reshape(z.shape)
        z_q = straight_through(code, path)
        usage = self.reduce_mean(usage)
        losses = {
            "distortion": F.mse_loss(straight_through(code, soft.reshape(z.shape)), z),
            "peak": 1 - peak,
            "usage": len(usage) * usage.square().sum() - 1,
        }
        entropy = -(usage * usage.clamp_min(1e-30).log()).sum().detach()
        stats = {"soft_perplexity": entropy.exp(), "tau": tau}
        return Quantized(z_q, indices, code, losses, stats)

    def after_step(self) -> None:
        if self.revival is not None:
            self.revival.apply_to(self, self.codebook)

    def _tau(self, rows: Tensor, hard: Tensor) -> Tensor:
        distance = self.reduce_mean((rows - hard).square().sum(-1).mean())
        return (self.temperature * distance).clamp_min(1e-12)

    def _encode(self, z: Tensor) -> Tensor:
        return nearest_code(z, self.codebook.detach().float()).unsqueeze(-1)

    def _decode(self, indices: Tensor) -> Tensor:
        return F.embedding(indices.squeeze(-1), self.codebook.float())


def soft_assignment(
    z: Tensor, table: Tensor, tau: Tensor, chunk_elements: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Soft codes `(N, d)`, mean responsibilities `(K,)` and mean of sum_k p_k² of `z (N, d)`.

    Chunks of tokens are recomputed in backward, so only one chunk's (n, K) arrays exist at a time.
    """
    rows = max(1, chunk_elements // len(table))
    parts = [
        checkpoint(_assign, chunk, table, tau, use_reentrant=False, preserve_rng_state=False)
        for chunk in z.split(rows)
    ]
    soft, usage, peak = zip(*parts, strict=True)
    return torch.cat(soft), torch.stack(usage).sum(0) / len(z), torch.stack(peak).sum() / len(z)


def _assign(z: Tensor, table: Tensor, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # -|z - e|² without |z|², which is constant over the codes.
    scores = torch.addmm(-table.square().sum(-1), z, table.T, alpha=2)  # (n, K)
    responsibilities = (scores / tau).softmax(dim=-1)
    peak = responsibilities.square().sum()
    return responsibilities @ table, responsibilities.sum(0), peak

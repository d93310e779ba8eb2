"""Vector quantization with a table learned by gradient (VQ-VAE, arXiv 1711.00937).

Look-up by distance, or by angle between normalised latents and codes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lambda24.common.config import Count, Size, config_class
from lambda24.tokenizer.quantizers.base import Quantized, Quantizer, unit
from lambda24.tokenizer.quantizers.codebooks import (
    Estimator,
    check_revival,
    check_table,
    codebook_losses,
    data_codes,
    estimate,
    nearest_code,
    random_codes,
    table_parameter,
)
from lambda24.tokenizer.quantizers.revival import Revival


@config_class
class VQConfig:
    """Learned codebook.

    Args:
        cosine: look up by angle; latents and codes are normalised, gradients pass through that.
        estimator: gradient from the code to the latent.
        kmeans_iterations: Lloyd iterations of `init_from_data`; 0 takes random rows of the data.
            Stage 1 never calls that, only the comparison of quantizers does: placing codebooks on
            data inside the pyramid was measured to be worse.
        revival_threshold: codes whose average usage, in units of uniform usage of a scale, falls
            below this are moved onto random latents of the step; None never does.
        revival_decay: of that average, per optimizer step.
        seed: of the random initial codes and of k-means.
    """

    kind: Literal["vq"] = "vq"
    dim: Size = 32
    codebook_size: Count = 16384
    cosine: bool = False
    estimator: Estimator = "straight_through"
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    kmeans_iterations: int = 10
    revival_threshold: float | None = None
    revival_decay: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        check_table(self.dim, self.codebook_size)
        check_revival(self.revival_threshold, self.revival_decay)


class VectorQuantizer(Quantizer):
    """Nearest row of a learned table `(K, D)`. Losses: `codebook` and `commitment`."""

    def __init__(self, config: VQConfig, *, passes_per_batch: int = 1) -> None:
        super().__init__(
            config.dim,
            (config.codebook_size,),
            passes_per_batch=passes_per_batch,
            loss_weights={
                "codebook": config.codebook_weight,
                "commitment": config.commitment_weight,
            },
            code_norm=1.0 if config.cosine else None,
            has_learned_codebook=True,
        )
        self.config = config
        self.codebook = table_parameter(random_codes(config.codebook_size, config.dim, config.seed))
        self.register_buffer("initialized", torch.tensor(False))
        self.initialized: Tensor
        self.revival = Revival.of(
            config.codebook_size,
            threshold=config.revival_threshold,
            decay=config.revival_decay,
            seed=config.seed,
        )

    @torch.no_grad()
    def init_from_data(self, z: Tensor) -> None:
        if self.initialized:
            return
        config = self.config
        codes = data_codes(
            self,
            z,
            iterations=config.kmeans_iterations,
            seed=config.seed,
            spherical=config.cosine,
        )
        self.codebook.copy_(codes)
        self.initialized.fill_(True)

    def _quantize(self, z: Tensor) -> Quantized:
        indices = self._encode(z.detach())
        code = self._decode(indices)
        path = unit(z) if self.config.cosine else z
        if self.revival is not None:
            self.revival.observe(self, path, indices)
        z_q = estimate(self.config.estimator, code, path)
        return Quantized(z_q, indices, code, codebook_losses(path, code), {})

    def after_step(self) -> None:
        if self.revival is not None:
            self.revival.apply_to(self, self.codebook)

    def _encode(self, z: Tensor) -> Tensor:
        z = unit(z) if self.config.cosine else z
        return nearest_code(z, self._table().detach()).unsqueeze(-1)

    def _decode(self, indices: Tensor) -> Tensor:
        return F.embedding(indices.squeeze(-1), self._table())

    def _table(self) -> Tensor:
        table = self.codebook.float()
        return unit(table) if self.config.cosine else table

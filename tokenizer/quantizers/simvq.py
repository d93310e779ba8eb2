"""SimVQ (arXiv 2411.02038): a frozen random table seen through one learned linear map.

Moving the map moves all codes at once, so none is left behind.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lambda24.common.config import Count, Size, config_class
from lambda24.tokenizer.quantizers.base import Quantized, Quantizer
from lambda24.tokenizer.quantizers.codebooks import (
    Estimator,
    check_table,
    codebook_losses,
    estimate,
    nearest_code,
    random_codes,
    table_parameter,
)


@config_class
class SimVQConfig:
    """Frozen table of N(0, 1/dim) rows drawn from `seed`, times a learned `dim` x `dim` matrix."""

    kind: Literal["simvq"] = "simvq"
    dim: Size = 32
    codebook_size: Count = 16384
    estimator: Estimator = "straight_through"
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        check_table(self.dim, self.codebook_size)


class SimVQ(Quantizer):
    """Nearest row of `frozen @ W.T`. Losses: `codebook` and `commitment`."""

    def __init__(self, config: SimVQConfig) -> None:
        super().__init__(
            config.dim,
            (config.codebook_size,),
            loss_weights={
                "codebook": config.codebook_weight,
                "commitment": config.commitment_weight,
            },
            has_learned_codebook=True,
        )
        self.config = config
        # Stored, not redrawn: random streams may differ between library versions.
        frozen = random_codes(config.codebook_size, config.dim, config.seed)
        self.register_buffer("frozen", frozen)
        self.frozen: Tensor
        generator = torch.Generator().manual_seed(config.seed + 1)
        uniform = torch.rand(config.dim, config.dim, generator=generator)
        # The initial scale of nn.Linear, as published.
        self.transform = table_parameter((2 * uniform - 1) * config.dim**-0.5)

    def _quantize(self, z: Tensor) -> Quantized:
        table = self._table()
        indices = nearest_code(z, table).unsqueeze(-1)
        code = F.embedding(indices.squeeze(-1), table)
        z_q = estimate(self.config.estimator, code, z)
        return Quantized(z_q, indices, code, codebook_losses(z, code), {})

    def _encode(self, z: Tensor) -> Tensor:
        return nearest_code(z, self._table()).unsqueeze(-1)

    def _decode(self, indices: Tensor) -> Tensor:
        # The whole table, so that a code's value never depends on which others are decoded with it.
        return F.embedding(indices.squeeze(-1), self._table())

    def _table(self) -> Tensor:
        return F.linear(self.frozen.float(), self.transform.float())  # (K, D)

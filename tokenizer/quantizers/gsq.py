"""GSQ (arXiv 2412.02632): groups of channels, each quantized on the sphere by one codebook."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lambda24.common.config import Count, Size, config_class
from lambda24.tokenizer.quantizers.base import Quantized, Quantizer, straight_through, unit
from lambda24.tokenizer.quantizers.codebooks import (
    check_revival,
    check_table,
    codebook_losses,
    nearest_code,
    random_codes,
    table_parameter,
)
from lambda24.tokenizer.quantizers.revival import Revival


@config_class
class GSQConfig:
    """Grouped spherical quantizer.

    Args:
        dim: channels of the latent, all groups together.
        groups: G; a token has G indices of log2(codebook_size) bits.
        renorm_output: return normalised codes. False is as published: only the look-up normalises,
            and the rows that are returned may leave the sphere in training.
        revival_threshold: codes whose average usage, in units of uniform usage of a scale, falls
            below this are moved onto random latents of the step; None never does.
        revival_decay: of that average, per optimizer step.
    """

    kind: Literal["gsq"] = "gsq"
    dim: Size = 16
    groups: int = 1
    codebook_size: Count = 16384
    renorm_output: bool = False
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    revival_threshold: float | None = None
    revival_decay: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        check_table(self.dim, self.codebook_size)
        check_revival(self.revival_threshold, self.revival_decay)
        if self.groups < 1 or self.dim % self.groups:
            raise ValueError(f"dim {self.dim} must be a positive multiple of groups {self.groups}")


class GroupedSphericalQuantizer(Quantizer):
    """Nearest row by angle for each group of channels. Losses: `codebook` and `commitment`.

    The gradient to z is the identity on the normalised groups, then the normalisation's.
    """

    def __init__(self, config: GSQConfig, *, passes_per_batch: int = 1) -> None:
        super().__init__(
            config.dim,
            (config.codebook_size,) * config.groups,
            passes_per_batch=passes_per_batch,
            loss_weights={
                "codebook": config.codebook_weight,
                "commitment": config.commitment_weight,
            },
            has_learned_codebook=True,
        )
        self.config = config
        rows = random_codes(config.codebook_size, config.dim // config.groups, config.seed)
        self.codebook = table_parameter(unit(rows))
        self.revival = Revival.of(
            config.codebook_size,
            threshold=config.revival_threshold,
            decay=config.revival_decay,
            seed=config.seed,
        )

    def _quantize(self, z: Tensor) -> Quantized:
        path = self._directions(z)
        indices = self._nearest(path.detach())
        if self.revival is not None:
            self.revival.observe(self, path, indices)
        code = self._decode(indices)
        path = rearrange(path, "... g d -> ... (g d)")
        losses = codebook_losses(path, code)
        return Quantized(straight_through(code, path), indices, code, losses, {})

    def after_step(self) -> None:
        if self.revival is not None:
            self.revival.apply_to(self, self.codebook)

    def _encode(self, z: Tensor) -> Tensor:
        return self._nearest(self._directions(z))

    def _decode(self, indices: Tensor) -> Tensor:
        table = self.codebook.float()
        table = unit(table) if self.config.renorm_output else table
        return rearrange(F.embedding(indices, table), "... g d -> ... (g d)")

    def _directions(self, z: Tensor) -> Tensor:
        return unit(rearrange(z, "... (g d) -> ... g d", g=self.num_codebooks))

    def _nearest(self, directions: Tensor) -> Tensor:
        return nearest_code(directions, unit(self.codebook.detach().float()))

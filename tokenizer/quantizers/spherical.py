"""Fixed codes on the unit sphere: Λ24-SQ (the Leech lattice's first shell) and other point sets.

The index is that of the largest inner product, which does not depend on the latent's norm; the norm
is owned by whoever feeds the quantizer (a bottleneck or the pyramid's gains).
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from lambda24.common.config import Count, Size, config_class
from lambda24.tokenizer.lattices.codes import build_code
from lambda24.tokenizer.quantizers.base import Quantized, Quantizer, straight_through, unit


@config_class
class LeechConfig:
    """Λ24-SQ (arXiv 2512.14697): the 196,560 minimal vectors of the Leech lattice, 17.58 bits.

    Args:
        normalize: quantize z / |z| with the gradient through the normalisation (the paper's
            single-scale model); False leaves the straight-through gradient on z itself.
        commitment_weight: weight of the angular commitment loss; the paper uses none.
    """

    kind: Literal["leech"] = "leech"
    normalize: bool = False
    commitment_weight: float = 0.0


@config_class
class SphericalConfig:
    """Any code that `tokenizer.lattices.codes.build_code` knows.

    Args:
        code: name of the code, such as "leech_type2", "leech_subset", "slq_released", "random",
            "fibonacci" or "e8".
        dim: dimension, for codes that exist in several; None is 24.
        size: number of points, for codes of free size, which need it.
        seed: draw of random codes; part of the model, as tokens are meaningless without it.
    """

    kind: Literal["spherical"] = "spherical"
    code: str = "leech_type2"
    dim: Size | None = None
    size: Count | None = None
    seed: int = 0
    normalize: bool = False
    commitment_weight: float = 0.0


class SphericalQuantizer(Quantizer):
    """Nearest point of a fixed code on the unit sphere; nothing is learned, nothing is stored.

    Losses: `commitment`, the mean over elements of (z / |z| - code)², so that it measures the angle
    only; comparing a unit code with a latent of arbitrary norm would mostly measure the norm.
    """

    def __init__(self, config: LeechConfig | SphericalConfig) -> None:
        if isinstance(config, LeechConfig):
            points = build_code("leech")
        else:
            points = build_code(config.code, config.dim, config.size, config.seed)
        super().__init__(
            points.dim,
            (points.size,),
            loss_weights={"commitment": config.commitment_weight},
            code_norm=1.0,
        )
        self.config = config
        self.points = points

    def _quantize(self, z: Tensor) -> Quantized:
        indices = self._encode(z.detach())
        code = self._decode(indices)
        direction = unit(z)
        path = direction if self.config.normalize else z
        losses = {"commitment": F.mse_loss(direction, code)}
        return Quantized(straight_through(code, path), indices, code, losses, {})

    def _encode(self, z: Tensor) -> Tensor:
        return self.points.nearest(z).unsqueeze(-1)

    def _decode(self, indices: Tensor) -> Tensor:
        return self.points.vectors(indices.squeeze(-1))

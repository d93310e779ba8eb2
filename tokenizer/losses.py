"""The reconstruction loss of stage 1: pixels plus a perceptual distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from lambda24.common.config import config_class
from lambda24.common.metrics.perceptual import PerceptualConfig, PerceptualNone, build_perceptual


@config_class
class ReconstructionLossConfig:
    """Weights of L1 and squared error on [-1, 1] pixels and of the perceptual distance."""

    l1_weight: float = 1.0
    l2_weight: float = 0.0
    perceptual_weight: float = 0.0
    perceptual: PerceptualConfig = PerceptualNone()

    def __post_init__(self) -> None:
        if self.perceptual_weight > 0 and isinstance(self.perceptual, PerceptualNone):
            raise ValueError(
                f"perceptual_weight {self.perceptual_weight} needs a perceptual network, "
                "got perceptual.kind='none'"
            )
        if min(self.l1_weight, self.l2_weight, self.perceptual_weight) < 0:
            raise ValueError(
                f"loss weights must not be negative, got l1 {self.l1_weight}, "
                f"l2 {self.l2_weight}, perceptual {self.perceptual_weight}"
            )


@dataclass(frozen=True)
class ReconstructionTerms:
    """`total` with gradient and its unweighted terms."""

    total: Tensor
    terms: dict[str, Tensor]


class ReconstructionLoss(nn.Module):
    """Distance of reconstructions to images, both (B, 3, H, W) in [-1, 1]."""

    def __init__(self, config: ReconstructionLossConfig) -> None:
        super().__init__()
        self.config = config
        self.perceptual = build_perceptual(config.perceptual) if config.perceptual_weight else None

    def forward(self, reconstructions: Tensor, images: Tensor) -> ReconstructionTerms:
        terms: dict[str, Tensor] = {"l1": F.l1_loss(reconstructions, images)}
        total = self.config.l1_weight * terms["l1"]
        if self.config.l2_weight:
            terms["l2"] = F.mse_loss(reconstructions, images)
            total = total + self.config.l2_weight * terms["l2"]
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(reconstructions, images).mean()
            total = total + self.config.perceptual_weight * terms["perceptual"]
        return ReconstructionTerms(total, terms)

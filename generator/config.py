"""Settings of a generator's network."""

from __future__ import annotations

from typing import Literal

from lambda24.common.config import Count, Depth, Size, config_class
from lambda24.generator.embeddings import RopeGrid
from lambda24.generator.heads import HeadConfig, LatticeHeadConfig


@config_class
class GeneratorConfig:
    """Everything that fixes a generator's shape, next to the `TokenSpec`.

    `adaln_init` and `gamma_init` multiply the initial weights behind scale/shift and behind gamma;
    VAR lowers the second with depth.

    `rope_reference` is the side of the grid that rotary positions are counted on, None the last of
    the pyramid, 64 for Infinity's weights (`generator.embeddings`).

    `phases` are the groups that each scale's tokens are drawn in (`generator.phases`), 1, 2 or 4 a
    scale; empty is one.

    Raises:
        ValueError: sizes below 1 (the MLP's too), a width that the heads do not divide, a head that
            rope2d cannot split.
    """

    depth: Depth
    width: Size
    num_heads: Size
    num_classes: Count
    head: HeadConfig = LatticeHeadConfig()
    mlp_ratio: float = 4.0
    position: Literal["rope2d", "learned"] = "rope2d"
    rope_theta: float = 10_000.0
    rope_grid: RopeGrid = "centers"
    rope_reference: int | None = None
    adaln: Literal["shared", "per_block"] = "per_block"
    qk_norm: bool = True
    drop_path: float = 0.0
    phases: tuple[int, ...] = ()
    adaln_init: float = 1e-3
    gamma_init: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("depth", "width", "num_heads", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be divisible by num_heads {self.num_heads}")
        if round(self.width * self.mlp_ratio) < 1:
            raise ValueError(
                f"width x mlp_ratio must be at least 1, got {self.width} x {self.mlp_ratio}"
            )
        head_dim = self.width // self.num_heads
        if self.position == "rope2d" and head_dim % 4:
            raise ValueError(
                f"rope2d needs width / num_heads divisible by 4, got "
                f"{self.width} / {self.num_heads} = {head_dim}"
            )
        if self.rope_reference is not None and self.rope_reference < 1:
            raise ValueError(f"rope_reference must be at least 1, got {self.rope_reference}")
        if self.rope_theta <= 0:
            raise ValueError(f"rope_theta must be above 0, got {self.rope_theta}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")

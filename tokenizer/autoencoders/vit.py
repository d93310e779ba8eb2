"""The vision-transformer autoencoder of the spherical-code reconstruction experiments.

Shape of BSQ-ViT (arXiv 2406.07548) and of the Λ24-SQ reconstruction models (arXiv 2512.14697):
pixel patches, learned positions, LayerNorm, pre-norm blocks with full attention, LayerNorm, and a
linear map to the latent; back the same way, ending in a two-layer tanh head that makes patches.
Unlike there, positions are interpolated to grids of another size, in training and afterwards.

Shapes: B batch, h and w grid sides, W width, C latent channels, P patch side.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lambda24.common.config import Depth, Size, config_class
from lambda24.tokenizer.autoencoders.recompute import run_layers

LAYER_NORM_EPS = 1e-5
"""Of every LayerNorm: what the published code had from timm, whose default is 1e-5 in 1.0.12 and
1e-6 in 1.0.31. Stated, as a tokenizer must not depend on the installed timm."""


@config_class
class ViTConfig:
    """Sizes of both halves; the stride is the patch side.

    Args:
        checkpoint_activations: gradients recompute what is inside blocks: less memory, more time.
    """

    kind: Literal["vit"] = "vit"
    patch_size: Size = 8
    width: Size = 768
    encoder_blocks: Depth = 12
    decoder_blocks: Depth = 12
    num_heads: Size = 12
    mlp_ratio: float = 4.0
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be divisible by num_heads {self.num_heads}")
        if min(self.patch_size, self.encoder_blocks, self.decoder_blocks) < 1:
            raise ValueError(
                f"patch_size {self.patch_size}, encoder_blocks {self.encoder_blocks} and "
                f"decoder_blocks {self.decoder_blocks} must be positive"
            )

    @property
    def stride(self) -> int:
        """Image pixels per latent position, along one side."""
        return self.patch_size


class Trunk(nn.Module):
    """Positions, LayerNorm, blocks, LayerNorm on a map of tokens (B, h, w, W).

    Args:
        grid_size: side of the square grid that the table of positions is for.
    """

    def __init__(self, config: ViTConfig, num_blocks: int, grid_size: int) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.positions = nn.Parameter(torch.empty(1, grid_size**2, config.width))
        self.positions.no_weight_decay = True  # type: ignore[attr-defined]
        self.norm_in = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.num_heads,
                mlp_ratio=config.mlp_ratio,
                qkv_bias=True,
                qk_norm=False,
                init_values=None,
                act_layer=nn.GELU,
                norm_layer=partial(nn.LayerNorm, eps=LAYER_NORM_EPS),  # type: ignore[arg-type]
            )
            for _ in range(num_blocks)
        )
        self.norm_out = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.recomputed = (Block,) if config.checkpoint_activations else ()
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        height = tokens.shape[1]
        x = rearrange(tokens, "b h w d -> b (h w) d") + self.position_table(*tokens.shape[1:3])
        x = self.norm_out(run_layers(self.blocks, self.norm_in(x), self.recomputed))
        return rearrange(x, "b (h w) d -> b h w d", h=height)

    def compile(self, **options: Any) -> None:
        """`torch.compile`, in place, for each block: one compilation serves them all."""
        for block in self.blocks:
            block.compile(**options)

    def position_table(self, height: int, width: int) -> Tensor:
        """Positions (1, h*w, W); bicubic, antialiased, in fp32 for a grid not trained on."""
        old, new = [self.grid_size, self.grid_size], [height, width]
        if old == new:
            return self.positions
        return resample_abs_pos_embed(
            self.positions, new, old, num_prefix_tokens=0, interpolation="bicubic", antialias=True
        )


class ViTEncoder(nn.Module):
    """(B, 3, H, W) in [-1, 1] to (B, latent_channels, H/P, W/P)."""

    def __init__(self, config: ViTConfig, latent_channels: int, grid_size: int) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.patches = nn.Linear(3 * config.patch_size**2, config.width, bias=False)
        self.trunk = Trunk(config, config.encoder_blocks, grid_size)
        self.latent = nn.Linear(config.width, latent_channels)
        self.apply(_initialize)

    def forward(self, images: Tensor) -> Tensor:
        patch = self.patch_size
        x = rearrange(images, "b c (h p) (w q) -> b h w (c p q)", p=patch, q=patch)
        return rearrange(self.latent(self.trunk(self.patches(x))), "b h w c -> b c h w")

    def compile(self, **options: Any) -> None:
        """`torch.compile`, in place, for the blocks; names of weights stay."""
        self.trunk.compile(**options)

    @property
    def last_weight(self) -> Tensor:
        """Weight of the linear map that makes the latent, (latent_channels, W)."""
        return self.latent.weight


class ViTDecoder(nn.Module):
    """(B, latent_channels, h, w) to (B, 3, h*P, w*P), not clamped."""

    def __init__(self, config: ViTConfig, latent_channels: int, grid_size: int) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        hidden = int(config.width * config.mlp_ratio)
        self.latent = nn.Linear(latent_channels, config.width)
        self.trunk = Trunk(config, config.decoder_blocks, grid_size)
        self.hidden = nn.Linear(config.width, hidden)
        self.pixels = nn.Linear(hidden, 3 * config.patch_size**2)
        self.apply(_initialize)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.trunk(self.latent(rearrange(latent, "b c h w -> b h w c")))
        x = self.pixels(self.hidden(x).tanh())
        patch = self.patch_size
        return rearrange(x, "b h w (c p q) -> b c (h p) (w q)", p=patch, q=patch)

    def compile(self, **options: Any) -> None:
        """`torch.compile`, in place, for the blocks; names of weights stay."""
        self.trunk.compile(**options)

    @property
    def last_weight(self) -> Tensor:
        """Weight of the linear map that makes the pixels, (3 * P ** 2, hidden)."""
        return self.pixels.weight


def _initialize(module: nn.Module) -> None:
    """ViT's usual start; the published code's is not known to us."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

"""The convolutional autoencoder: images (B, 3, H, W) to latents (B, C, H/stride, W/stride).

The backbone of the latent-diffusion and VAR tokenizers: residual blocks with GroupNorm and SiLU,
strided convolutions down, nearest-neighbour upsampling up, no attention. `patch_size` folds pixels
into channels first, which moves the work to grids where a CPU or GPU is busiest.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from common.config import config_class


@config_class
class CNNConfig:
    """Sizes of both halves; stride = patch_size * 2 ** (len(channels) - 1)."""

    channels: tuple[int, ...] = (128, 256)
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    patch_size: int = 1
    groups: int = 32

    def __post_init__(self) -> None:
        for width in self.channels:
            if width % self.groups:
                raise ValueError(f"channels {width} must be divisible by groups {self.groups}")
        if not self.channels or self.encoder_blocks < 1 or self.decoder_blocks < 1:
            raise ValueError(
                f"need at least one level and one block, got channels {self.channels}, "
                f"encoder_blocks {self.encoder_blocks}, decoder_blocks {self.decoder_blocks}"
            )

    @property
    def stride(self) -> int:
        """Image pixels per latent position, along one side."""
        return self.patch_size * 2 ** (len(self.channels) - 1)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution where the width changes."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=1e-6)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=1e-6)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = (
            nn.Identity()
            if channels_in == channels_out
            else nn.Conv2d(channels_in, channels_out, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip(x) + h


class Upsample(nn.Module):
    """Nearest-neighbour x2, then a 3x3 convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Encoder(nn.Sequential):
    """(B, 3, H, W) in [-1, 1] to (B, latent_channels, H/stride, W/stride)."""

    def __init__(self, config: CNNConfig, latent_channels: int) -> None:
        widths, patch = config.channels, config.patch_size
        layers: list[nn.Module] = [
            Rearrange("b c (h p) (w q) -> b (c p q) h w", p=patch, q=patch),
            nn.Conv2d(3 * patch * patch, widths[0], 3, padding=1),
        ]
        for level, width in enumerate(widths):
            if level:
                layers.append(nn.Conv2d(widths[level - 1], width, 4, stride=2, padding=1))
            layers += [
                ResidualBlock(width, width, config.groups) for _ in range(config.encoder_blocks)
            ]
        layers += [
            nn.GroupNorm(config.groups, widths[-1], eps=1e-6),
            nn.SiLU(),
            nn.Conv2d(widths[-1], latent_channels, 3, padding=1),
        ]
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """(B, latent_channels, h, w) to (B, 3, h*stride, w*stride), not clamped."""

    def __init__(self, config: CNNConfig, latent_channels: int) -> None:
        widths, patch = config.channels[::-1], config.patch_size
        layers: list[nn.Module] = [nn.Conv2d(latent_channels, widths[0], 3, padding=1)]
        for level, width in enumerate(widths):
            if level:
                layers.append(Upsample(widths[level - 1], width))
            layers += [
                ResidualBlock(width, width, config.groups) for _ in range(config.decoder_blocks)
            ]
        layers += [
            nn.GroupNorm(config.groups, widths[-1], eps=1e-6),
            nn.SiLU(),
            nn.Conv2d(widths[-1], 3 * patch * patch, 3, padding=1),
            Rearrange("b (c p q) h w -> b c (h p) (w q)", p=patch, q=patch),
        ]
        super().__init__(*layers)

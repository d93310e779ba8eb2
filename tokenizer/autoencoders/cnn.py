"""The convolutional autoencoder: images (B, 3, H, W) to latents (B, C, H/stride, W/stride).

Residual blocks with GroupNorm and SiLU, strided convolutions down, nearest-neighbour upsampling up.
`layout="plain"` is the small form for small images: the strided convolutions change the width and
there is no middle. `layout="ldm"` is the backbone of latent diffusion (arXiv 2112.10752), FLUX and
the VAR tokenizers. `patch_size` folds pixels into channels first, which moves the work to grids
where a CPU or GPU is busiest. Any H and W that the stride divides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from lambda24.common.config import Depth, Size, config_class
from lambda24.tokenizer.autoencoders.recompute import run_layers


@config_class
class CNNConfig:
    """Sizes of both halves; stride = patch_size * 2 ** (len(channels) - 1).

    Args:
        layout: "plain", or "ldm": the first block of a level changes the width, downsampling pads
            right and bottom only, and two more blocks sit in the middle of each half.
        attention: "ldm" only. "mid": between the two middle blocks (latent diffusion); "lowest":
            also after each block of the lowest resolution (VQGAN and VAR); single-head.
        checkpoint_activations: gradients recompute what is inside blocks: less memory, more time.
    """

    kind: Literal["cnn"] = "cnn"
    channels: tuple[Size, ...] = (128, 256)
    encoder_blocks: Depth = 2
    decoder_blocks: Depth = 3
    patch_size: Size = 1
    groups: Size = 32
    layout: Literal["plain", "ldm"] = "plain"
    attention: Literal["none", "mid", "lowest"] = "none"
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        for width in self.channels:
            if width % self.groups:
                raise ValueError(f"channels {width} must be divisible by groups {self.groups}")
        if not self.channels or self.encoder_blocks < 1 or self.decoder_blocks < 1:
            raise ValueError(
                f"need at least one level and one block, got channels {self.channels}, "
                f"encoder_blocks {self.encoder_blocks}, decoder_blocks {self.decoder_blocks}"
            )
        if self.attention != "none" and self.layout != "ldm":
            raise ValueError(
                f"attention {self.attention!r} needs layout 'ldm', not {self.layout!r}"
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


class SpatialAttention(nn.Module):
    """x + projection(attention(norm(x))): one head over all positions of a map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.projection = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x))
        query, key, value = rearrange(qkv, "b (n c) h w -> n b 1 (h w) c", n=3)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.projection(rearrange(mixed, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 on a map padded at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour x2, then a 3x3 convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Half(nn.Sequential):
    """A chain of layers whose blocks may be recomputed for the gradient.

    Args:
        num_eager: layers at the end that `compile` leaves alone, so that gradients with respect to
            the last weight stay as cheap as that one layer.
    """

    def __init__(
        self, layers: list[nn.Module], checkpoint_activations: bool, num_eager: int
    ) -> None:
        super().__init__(*layers)
        self.num_eager = num_eager
        self.recomputed = (ResidualBlock, SpatialAttention) if checkpoint_activations else ()
        self._compiled_body: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = (self._compiled_body or self._body)(x)
        for layer in list(self)[-self.num_eager :]:
            x = layer(x)
        return x

    def compile(self, **options: Any) -> None:
        """`torch.compile`, in place, for all but the last layer; names of weights stay."""
        self._compiled_body = torch.compile(self._body, **options)

    def _body(self, x: Tensor) -> Tensor:
        return run_layers(list(self)[: -self.num_eager], x, self.recomputed)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compiled_body": None}  # copies run eagerly


class CNNEncoder(_Half):
    """(B, 3, H, W) in [-1, 1] to (B, latent_channels, H/stride, W/stride)."""

    def __init__(self, config: CNNConfig, latent_channels: int) -> None:
        widths, patch = config.channels, config.patch_size
        layers: list[nn.Module] = [
            Rearrange("b c (h p) (w q) -> b (c p q) h w", p=patch, q=patch),
            nn.Conv2d(3 * patch * patch, widths[0], 3, padding=1),
        ]
        last = len(widths) - 1
        for level, width in enumerate(widths):
            previous = widths[max(0, level - 1)]
            if level and config.layout == "plain":
                layers.append(nn.Conv2d(previous, width, 4, stride=2, padding=1))
                previous = width
            elif level:
                layers.append(Downsample(previous))
            layers += _level(config, previous, width, config.encoder_blocks, level == last)
        layers += _middle(config)
        layers += [
            nn.GroupNorm(config.groups, widths[-1], eps=1e-6),
            nn.SiLU(),
            nn.Conv2d(widths[-1], latent_channels, 3, padding=1),
        ]
        super().__init__(layers, config.checkpoint_activations, num_eager=1)

    @property
    def last_weight(self) -> Tensor:
        """Weight of the convolution that makes the latent, (latent_channels, width, 3, 3)."""
        return _weight(self[-1])


class CNNDecoder(_Half):
    """(B, latent_channels, h, w) to (B, 3, h*stride, w*stride), not clamped."""

    def __init__(self, config: CNNConfig, latent_channels: int) -> None:
        widths, patch = config.channels[::-1], config.patch_size
        layers: list[nn.Module] = [nn.Conv2d(latent_channels, widths[0], 3, padding=1)]
        layers += _middle(config)
        for level, width in enumerate(widths):
            previous = widths[max(0, level - 1)]
            if level:
                after = width if config.layout == "plain" else previous
                layers.append(Upsample(previous, after))
                previous = after
            layers += _level(config, previous, width, config.decoder_blocks, level == 0)
        layers += [
            nn.GroupNorm(config.groups, widths[-1], eps=1e-6),
            nn.SiLU(),
            nn.Conv2d(widths[-1], 3 * patch * patch, 3, padding=1),
            Rearrange("b (c p q) h w -> b c (h p) (w q)", p=patch, q=patch),
        ]
        super().__init__(layers, config.checkpoint_activations, num_eager=2)

    @property
    def last_weight(self) -> Tensor:
        """Weight of the convolution that makes the pixels, (3 * patch_size ** 2, width, 3, 3)."""
        return _weight(self[-2])


def _level(
    config: CNNConfig, width_in: int, width: int, num_blocks: int, is_lowest: bool
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for block in range(num_blocks):
        layers.append(ResidualBlock(width if block else width_in, width, config.groups))
        if is_lowest and config.attention == "lowest":
            layers.append(SpatialAttention(width, config.groups))
    return layers


def _middle(config: CNNConfig) -> list[nn.Module]:
    if config.layout == "plain":
        return []
    width = config.channels[-1]
    first, second = (ResidualBlock(width, width, config.groups) for _ in range(2))
    if config.attention == "none":
        return [first, second]
    return [first, SpatialAttention(width, config.groups), second]


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Conv2d)
    return layer.weight

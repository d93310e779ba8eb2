"""PatchGAN (pix2pix, arXiv 1611.07004): a convolutional network that judges overlapping patches."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from lambda24.common.config import config_class
from lambda24.tokenizer.adversary.discriminators.base import Discriminator
from lambda24.tokenizer.adversary.discriminators.layers import LEAK, spectral


@config_class
class PatchGANConfig:
    """Sizes of a PatchGAN; each of `num_layers` halves the grid, two more convolutions follow.

    Args:
        channels: of the first layer; they double at each further one, up to eight times.
        norm: after all convolutions but the first and last: "group" (the published BatchNorm
            would depend on the batch); "spectral" constrains all weights instead.
    """

    kind: Literal["patchgan"] = "patchgan"
    channels: Annotated[int, Field(ge=1)] = 64
    num_layers: Annotated[int, Field(ge=1)] = 3
    norm: Literal["group", "spectral", "none"] = "group"


class PatchGAN(Discriminator):
    """Raises ValueError for images too small for its layers."""

    def __init__(self, config: PatchGANConfig, image_size: int) -> None:
        super().__init__()
        if image_size >> config.num_layers < 3:
            raise ValueError(
                f"patchgan: {config.num_layers} layers need images of {3 << config.num_layers} "
                f"pixels or more, got {image_size}"
            )
        widths = [config.channels * min(2**i, 8) for i in range(config.num_layers + 1)]
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            stride = 2 if i < config.num_layers else 1
            is_normed = config.norm == "group" and i > 0
            layers += [
                _conv(3 if i == 0 else widths[i - 1], width, stride, config, bias=not is_normed),
                nn.GroupNorm(math.gcd(32, width), width) if is_normed else nn.Identity(),
                nn.LeakyReLU(LEAK),
            ]
        layers.append(_conv(widths[-1], 1, 1, config, bias=True))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return rearrange(self.layers(images), "b 1 h w -> b (h w)").float()


def _conv(
    channels_in: int, channels_out: int, stride: int, config: PatchGANConfig, *, bias: bool
) -> nn.Module:
    conv = nn.Conv2d(channels_in, channels_out, 4, stride=stride, padding=1, bias=bias)
    nn.init.normal_(conv.weight, std=0.02)
    return spectral(conv) if config.norm == "spectral" else conv

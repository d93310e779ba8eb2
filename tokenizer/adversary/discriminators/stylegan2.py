"""The residual discriminator of StyleGAN2 (arXiv 1912.04958) in plain PyTorch."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from lambda24.common.config import config_class
from lambda24.tokenizer.adversary.discriminators.base import Discriminator
from lambda24.tokenizer.adversary.discriminators.layers import (
    Blur,
    EqualizedConv,
    EqualizedLinear,
    append_deviation,
    leaky,
)


@config_class
class StyleGAN2Config:
    """Widths are min(channel_base / resolution, max_channels).

    Args:
        group_size: consecutive samples that share a minibatch standard deviation; it must divide
            the micro-batch of each process.
    """

    kind: Literal["stylegan2"] = "stylegan2"
    channel_base: Annotated[int, Field(ge=1)] = 16384
    max_channels: Annotated[int, Field(ge=1)] = 512
    group_size: Annotated[int, Field(ge=1)] = 4


class StyleGAN2Discriminator(Discriminator):
    """One logit an image. Raises ValueError for a size that is no power of two from 8."""

    def __init__(self, config: StyleGAN2Config, image_size: int) -> None:
        super().__init__()
        if image_size < 8 or image_size & (image_size - 1):
            raise ValueError(f"stylegan2: image_size must be 8, 16, 32, ..., got {image_size}")
        self.group_size = config.group_size
        sizes = [image_size >> i for i in range(int(math.log2(image_size)) - 1)]  # ..., 8, 4
        widths = [max(1, min(config.channel_base // size, config.max_channels)) for size in sizes]
        self.from_rgb = EqualizedConv(3, widths[0], 1)
        self.blocks = nn.Sequential(*(DownBlock(*pair) for pair in pairwise(widths)))
        last = widths[-1]
        self.conv = EqualizedConv(last + 1, last, 3, padding=1)
        self.hidden = EqualizedLinear(last * 4 * 4, last)
        self.logit = EqualizedLinear(last, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(leaky(self.from_rgb(images)))  # (B, C, 4, 4)
        x = leaky(self.conv(append_deviation(x, self.group_size)))
        x = leaky(self.hidden(x.flatten(1)))
        return self.logit(x).float()  # (B, 1)


class DownBlock(nn.Module):
    """Two convolutions and a linear skip, both to half the size behind a blur."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = EqualizedConv(channels_in, channels_in, 3, padding=1)
        self.blur = Blur(stride=1, padding=2)
        self.conv2 = EqualizedConv(channels_in, channels_out, 3, stride=2)
        self.skip_blur = Blur(stride=2, padding=1)
        self.skip = EqualizedConv(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = leaky(self.conv1(x))
        h = leaky(self.conv2(self.blur(h)))
        return (h + self.skip(self.skip_blur(x))) / math.sqrt(2)

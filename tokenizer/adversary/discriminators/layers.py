"""Layers of discriminators whose result for a sample depends only on its group of neighbours.

Statistics over a whole batch (BatchNorm, minibatch deviation) would make the result depend on the
number of processes and micro-batches. Here they are taken over groups of consecutive samples, which
no process or micro-batch may cut.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn
from torch.nn.utils import parametrize

LEAK = 0.2


class SpectralNorm(nn.Module):
    """A weight over its largest singular value (arXiv 1802.05957), as a parametrization.

    `forward` is pure: it uses the singular vectors as they are. `advance` does one step of power
    iteration, once an optimizer step, however many forward passes that took.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.u: Tensor
        self.v: Tensor
        self.register_buffer("u", F.normalize(torch.randn(weight.shape[0]), dim=0))
        self.register_buffer("v", torch.zeros(weight[0].numel()))
        for _ in range(15):
            self.advance(weight)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            sigma = self.u @ (weight.flatten(1) @ self.v)
            return weight / sigma

    @torch.no_grad()
    def advance(self, weight: Tensor) -> None:
        matrix = weight.flatten(1)
        self.v.copy_(F.normalize(matrix.T @ self.u, dim=0))
        self.u.copy_(F.normalize(matrix @ self.v, dim=0))


def spectral(module: nn.Conv1d | nn.Conv2d) -> nn.Conv1d | nn.Conv2d:
    """The module with its weight under `SpectralNorm`."""
    parametrize.register_parametrization(module, "weight", SpectralNorm(module.weight))
    return module


def advance_spectral_norms(module: nn.Module) -> None:
    """One step of power iteration for every spectral norm in `module`."""
    for child in module.modules():
        if isinstance(child, parametrize.ParametrizationList) and isinstance(
            child[0], SpectralNorm
        ):
            child[0].advance(child.original)


class GroupedBatchNorm(nn.Module):
    """BatchNorm of `(B, C, N)` over groups of `group_size` consecutive samples, no running mean.

    The virtual batch of StyleGAN-T (arXiv 2301.09515).
    """

    def __init__(self, channels: int, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        check_groups(len(x), self.group_size)
        groups = rearrange(x.float(), "(g b) c n -> g b c n", b=self.group_size)
        variance, mean = torch.var_mean(groups, dim=(1, 3), keepdim=True, correction=0)
        flat = rearrange((groups - mean) * (variance + 1e-5).rsqrt(), "g b c n -> (g b) c n")
        return flat * self.weight[:, None] + self.bias[:, None]


def append_deviation(x: Tensor, group_size: int) -> Tensor:
    """Adds a channel to `(B, C, H, W)`: the mean standard deviation within the sample's group.

    Minibatch standard deviation (arXiv 1710.10196) over groups of consecutive samples.
    """
    check_groups(len(x), group_size)
    groups = rearrange(x.float(), "(g b) c h w -> g b c h w", b=group_size)
    variance = groups.var(dim=1, correction=0)  # (groups, C, H, W)
    deviation = reduce((variance + 1e-8).sqrt(), "g c h w -> g", "mean")
    channel = repeat(deviation, "g -> (g b) 1 h w", b=group_size, h=x.shape[2], w=x.shape[3])
    return torch.cat([x, channel.to(x.dtype)], dim=1)


class EqualizedConv(nn.Module):
    """Convolution whose unit-variance weights are scaled by 1/sqrt(fan in) at run time."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels_out))
        self.scale = 1 / math.sqrt(channels_in * kernel**2)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, self.stride, self.padding)


class EqualizedLinear(nn.Module):
    """Linear layer whose unit-variance weights are scaled by 1/sqrt(fan in) at run time."""

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features_out, features_in))
        self.bias = nn.Parameter(torch.zeros(features_out))
        self.scale = 1 / math.sqrt(features_in)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias)


class Blur(nn.Module):
    """The [1, 3, 3, 1] binomial filter before a stride of 2, with `padding` zeros around."""

    def __init__(self, *, stride: int, padding: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.kernel: Tensor
        self.register_buffer("kernel", row[:, None] * row, persistent=False)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        return F.conv2d(x, kernel, stride=self.stride, padding=self.padding, groups=channels)


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU times sqrt(2), which keeps the variance of equalized layers."""
    return F.leaky_relu(x, LEAK) * math.sqrt(2)


def check_groups(batch_size: int, group_size: int) -> None:
    """Raises ValueError when samples do not fill whole groups."""
    if batch_size % group_size:
        raise ValueError(f"batch of {batch_size} must be divisible by group_size {group_size}")

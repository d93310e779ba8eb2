"""Small trained heads on several blocks of a frozen vision transformer.

The projected discriminator of StyleGAN-T (arXiv 2301.09515) that VAR's tokenizer used with DINO.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from lambda24.common.config import config_class
from lambda24.common.frozen_networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    load_timm,
    load_transformers,
)
from lambda24.tokenizer.adversary.discriminators.base import Discriminator
from lambda24.tokenizer.adversary.discriminators.layers import LEAK, GroupedBatchNorm, spectral

FIELD = "discriminator.backbone"


@config_class
class DinoConfig:
    """Which features the heads see.

    Args:
        backbone: transformers: hub id or local folder of a ViT that gives hidden states (DINO,
            DINOv2). timm: a name, "hf-hub:ID" or "local-dir:FOLDER".
        blocks: from 1, whose outputs get a head each.
        input_size: images are resized to this side; a multiple of the backbone's patch size.
        kernel_size: of the heads' convolution along the sequence of patches.
        group_size: consecutive samples that are normalised together; it must divide the
            micro-batch of each process.
    """

    kind: Literal["dino"] = "dino"
    library: Literal["transformers", "timm"] = "transformers"
    backbone: str = "facebook/dinov2-small"
    blocks: tuple[Annotated[int, Field(ge=1)], ...] = (3, 6, 9, 12)
    input_size: Annotated[int, Field(ge=1)] = 224
    kernel_size: Annotated[int, Field(ge=1)] = 9
    group_size: Annotated[int, Field(ge=1)] = 8

    def __post_init__(self) -> None:
        if not self.blocks or len(set(self.blocks)) < len(self.blocks):
            raise ValueError(f"blocks must be distinct and at least one, got {self.blocks}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")


class DinoDiscriminator(Discriminator):
    """One logit per head and patch.

    The frozen backbone is no part of the parameters and the state, and follows `to`.

    Raises:
        ValueError: a backbone that is not found or lacks weights, blocks that it does not have, or
            an input size off its patch grid.
    """

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.config, self.group_size = config, config.group_size
        backbone = _FEATURES[config.library](config)
        self._frozen = [backbone.eval().requires_grad_(False)]  # a list hides it from nn.Module
        self.heads = nn.ModuleList(
            Head(backbone.width, config.kernel_size, config.group_size) for _ in config.blocks
        )
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        size = self.config.input_size
        if tuple(images.shape[2:]) != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        features = self._frozen[0]((images / 2 + 0.5 - self.mean) / self.std)
        logits = [head(f) for head, f in zip(self.heads, features, strict=True)]
        return torch.cat(logits, dim=1).float()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DinoDiscriminator:
        self._frozen[0]._apply(fn)
        super()._apply(fn, recurse)
        return self


class Head(nn.Module):
    """Features (B, N, C) to logits (B, N)."""

    def __init__(self, channels: int, kernel_size: int, group_size: int) -> None:
        super().__init__()
        self.project = _layer(channels, 1, group_size)
        self.mix = _layer(channels, kernel_size, group_size)
        self.logit = spectral(nn.Conv1d(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        x = self.project(rearrange(features, "b n c -> b c n"))
        x = (self.mix(x) + x) / math.sqrt(2)
        return rearrange(self.logit(x), "b 1 n -> b n")


def _layer(channels: int, kernel: int, group_size: int) -> nn.Sequential:
    conv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, padding_mode="circular")
    return nn.Sequential(spectral(conv), GroupedBatchNorm(channels, group_size), nn.LeakyReLU(LEAK))


class TransformersFeatures(nn.Module):
    """Patch features (B, N, C) of blocks of a transformers ViT."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.model = cast(Any, load_transformers(config.backbone, field=FIELD))
        self.blocks, self.width = config.blocks, int(self.model.config.hidden_size)
        side = _patches_a_side(config, self.model.config.patch_size)
        self.num_patches = side**2
        _check_depth(config, self.model.config.num_hidden_layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        states = self.model(pixel_values=images, output_hidden_states=True).hidden_states
        # Class and register tokens come first.
        return [states[block][:, -self.num_patches :] for block in self.blocks]


class TimmFeatures(nn.Module):
    """Patch features (B, N, C) of blocks of a timm ViT."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        network = load_timm(config.backbone, field=FIELD, advice="", dynamic_img_size=True)
        self.model = cast(Any, network)
        self.model.reset_classifier(0)
        self.indices, self.width = [b - 1 for b in config.blocks], int(self.model.embed_dim)
        _patches_a_side(config, self.model.patch_embed.patch_size[0])
        _check_depth(config, len(self.model.blocks))

    def forward(self, images: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.model.forward_intermediates(
            images, indices=self.indices, output_fmt="NLC", intermediates_only=True
        )
        return features


_FEATURES: dict[str, Callable[[DinoConfig], Any]] = {
    "transformers": TransformersFeatures,
    "timm": TimmFeatures,
}


def _patches_a_side(config: DinoConfig, patch_size: int) -> int:
    if config.input_size % patch_size:
        raise ValueError(
            f"dino: input_size must be a multiple of {config.backbone}'s patch size {patch_size}, "
            f"got {config.input_size}"
        )
    return config.input_size // patch_size


def _check_depth(config: DinoConfig, depth: int) -> None:
    if max(config.blocks) > depth:
        raise ValueError(f"dino: {config.backbone} has {depth} blocks, got blocks {config.blocks}")

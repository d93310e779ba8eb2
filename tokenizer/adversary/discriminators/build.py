"""From a config to a discriminator: the tagged union of all kinds and their only builder."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lambda24.tokenizer.adversary.discriminators.base import Discriminator
from lambda24.tokenizer.adversary.discriminators.dino import DinoConfig, DinoDiscriminator
from lambda24.tokenizer.adversary.discriminators.patchgan import PatchGAN, PatchGANConfig
from lambda24.tokenizer.adversary.discriminators.stylegan2 import (
    StyleGAN2Config,
    StyleGAN2Discriminator,
)

DiscriminatorConfig = Annotated[
    PatchGANConfig | StyleGAN2Config | DinoConfig, Field(discriminator="kind")
]


def build_discriminator(config: DiscriminatorConfig, image_size: int) -> Discriminator:
    """Builds the discriminator of a config for square images.

    Raises:
        ValueError: an image size, block or folder that the kind cannot use.
    """
    match config:
        case PatchGANConfig():
            return PatchGAN(config, image_size)
        case StyleGAN2Config():
            return StyleGAN2Discriminator(config, image_size)
        case DinoConfig():
            return DinoDiscriminator(config)
        case _:
            raise ValueError(f"discriminator: no builder for {type(config).__name__}")

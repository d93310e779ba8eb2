"""Discriminators: one protocol, one file each, chosen by one line of configuration."""

from lambda24.tokenizer.adversary.discriminators.base import Discriminator
from lambda24.tokenizer.adversary.discriminators.build import (
    DiscriminatorConfig,
    build_discriminator,
)
from lambda24.tokenizer.adversary.discriminators.dino import DinoConfig
from lambda24.tokenizer.adversary.discriminators.patchgan import PatchGANConfig
from lambda24.tokenizer.adversary.discriminators.stylegan2 import StyleGAN2Config

__all__ = [
    "DinoConfig",
    "Discriminator",
    "DiscriminatorConfig",
    "PatchGANConfig",
    "StyleGAN2Config",
    "build_discriminator",
]

"""Discriminators: one protocol, one file each, chosen by one line of configuration."""

from tokenizer.discriminators.base import Discriminator
from tokenizer.discriminators.build import DiscriminatorConfig, build_discriminator
from tokenizer.discriminators.dino import DinoConfig
from tokenizer.discriminators.patchgan import PatchGANConfig
from tokenizer.discriminators.stylegan2 import StyleGAN2Config

__all__ = [
    "DinoConfig",
    "Discriminator",
    "DiscriminatorConfig",
    "PatchGANConfig",
    "StyleGAN2Config",
    "build_discriminator",
]

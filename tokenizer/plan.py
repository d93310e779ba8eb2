"""What a stage-1 run will be, for a dry run: parameters, tokens, bits, memory, steps.

Networks are built without memory (PyTorch's meta device) and nothing is read or downloaded: a
frozen teacher, a perceptual network and a discriminator on a pretrained backbone are not counted.
"""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lambda24.common.training.estimate import activations_per_image, estimate_memory, length_text
from lambda24.common.training.launch import resolve_precision
from lambda24.tokenizer.adversary.discriminators import (
    DinoConfig,
    StyleGAN2Config,
    build_discriminator,
)
from lambda24.tokenizer.autoencoders.build import build_autoencoder
from lambda24.tokenizer.model import ImageTokenizer, TokenizerConfig
from lambda24.tokenizer.settings import TokenizerTrainingConfig


def describe(config: TokenizerTrainingConfig) -> str:
    """The plan of a run, a few lines of text."""
    with torch.device("meta"):
        image_tokenizer = ImageTokenizer(config.model)
    parts = {name: _count(part) for name, part in image_tokenizer.named_children()}
    averaged = sum(parts.values())
    if config.adversary is not None and not isinstance(config.adversary.discriminator, DinoConfig):
        # Spectral norm looks at weights; networks with it are small.
        is_large = isinstance(config.adversary.discriminator, StyleGAN2Config)
        with torch.device("meta" if is_large else "cpu"):
            network = build_discriminator(config.adversary.discriminator, config.model.image_size)
        parts["discriminator"] = _count(network)
    spec, pixels = image_tokenizer.spec, config.model.image_size**2
    bits, loop = spec.bits_per_image, config.loop
    bf16 = resolve_precision(loop.precision) == "bf16"
    activations = activation_bytes(config.model, spec.code_dim, bf16=bf16)
    memory = estimate_memory(sum(parts.values()), averaged=averaged, activations=activations)
    return "\n".join(
        [
            *(f"{name}: {count:,} parameters" for name, count in parts.items()),
            f"scales {spec.scales}: {spec.length:,} tokens of {spec.bits_per_token:.2f} bits",
            f"{bits:,.0f} bits per image, {bits / pixels:.3f} bits per pixel",
            memory.text(loop.batch_size // loop.accumulation),
            f"activations are the autoencoder's, in {'bf16' if bf16 else 'fp32'}",
            length_text(loop),
        ]
    )


def activation_bytes(config: TokenizerConfig, latent_channels: int, *, bf16: bool) -> int:
    """Bytes that each image adds to what the gradient through encoder and decoder keeps.

    Counted on shapes alone, with fused attention. What activation checkpointing recomputes is left
    out, so its largest block comes on top, as do perceptual network, discriminator and teacher.
    """
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        halves = build_autoencoder(config.autoencoder, latent_channels, config.image_size)
        network = nn.Sequential(*halves)
        size = config.image_size
        return activations_per_image(lambda n: network(torch.empty(n, 3, size, size)))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)

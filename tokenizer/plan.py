"""What a stage-1 run will be, for a dry run: parameters, tokens, bits, memory, steps.

Networks are built without memory (PyTorch's meta device) and nothing is read or downloaded: a
frozen teacher, a perceptual network and a discriminator on a pretrained backbone are not counted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tokenizer.autoencoder import build_autoencoder
from tokenizer.discriminators import DinoConfig, build_discriminator
from tokenizer.model import ImageTokenizer, TokenizerConfig
from tokenizer.training import TokenizerTrainingConfig

ADAMW_BYTES, AVERAGED_BYTES = 16, 20
"""Of a parameter in fp32: weight, gradient and two moments; and its running average."""


def describe(config: TokenizerTrainingConfig) -> str:
    """The plan of a run, a few lines of text."""
    with torch.device("meta"):
        image_tokenizer = ImageTokenizer(config.model)
    parts = {name: _count(part) for name, part in image_tokenizer.named_children()}
    state = AVERAGED_BYTES * sum(parts.values())
    if config.adversary is not None and not isinstance(config.adversary.discriminator, DinoConfig):
        with torch.device("meta"):
            network = build_discriminator(config.adversary.discriminator, config.model.image_size)
        parts["discriminator"] = _count(network)
        state += ADAMW_BYTES * parts["discriminator"]
    spec, pixels = image_tokenizer.spec, config.model.image_size**2
    bits, loop = spec.bits_per_image, config.loop
    bf16 = loop.precision == "bf16"
    activations = activation_bytes(config.model, spec.code_dim, bf16=bf16)
    return "\n".join(
        [
            *(f"{name}: {count:,} parameters" for name, count in parts.items()),
            f"scales {spec.scales}: {spec.length:,} tokens of {spec.bits_per_token:.2f} bits",
            f"{bits:,.0f} bits per image, {bits / pixels:.3f} bits per pixel",
            f"memory: {state / 2**20:,.0f} MiB of weights, gradients, AdamW and averages; about "
            f"{activations / 2**20:,.0f} MiB an image for the autoencoder's gradient in "
            f"{'bf16' if bf16 else 'fp32'}",
            f"{loop.steps:,} steps of {loop.batch_size} images, "
            f"{loop.steps * loop.batch_size:,} in all",
        ]
    )


def activation_bytes(config: TokenizerConfig, latent_channels: int, *, bf16: bool) -> int:
    """Bytes that each image adds to what the gradient through encoder and decoder keeps.

    Counted on shapes alone, with fused attention. What activation checkpointing recomputes is left
    out, so its largest block comes on top, as do perceptual network, discriminator and teacher.
    """
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        halves = build_autoencoder(config.autoencoder, latent_channels, config.image_size)
        one, two = (_saved_bytes(nn.Sequential(*halves), n, config.image_size) for n in (1, 2))
    return two - one  # without the weights and their bf16 copies


def _saved_bytes(network: nn.Module, batch_size: int, image_size: int) -> int:
    saved: list[Tensor] = []  # alive, as the address of a freed storage could be given out again

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.empty(batch_size, 3, image_size, image_size))
    storages = (tensor.untyped_storage() for tensor in saved)
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)

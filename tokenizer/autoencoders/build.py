"""From a config to the two networks of an autoencoder, and named shapes.

Every encoder maps images (B, 3, H, W) to latents (B, C, H/stride, W/stride), every decoder back,
for any H and W that the stride divides. Both have `last_weight`, the weight of their last layer,
which adaptive loss weights differentiate with respect to, and `compile()`, which compiles the rest
in place. Quantizers and pyramids are unknown here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from lambda24.tokenizer.autoencoders.cnn import CNNConfig, CNNDecoder, CNNEncoder
from lambda24.tokenizer.autoencoders.vit import ViTConfig, ViTDecoder, ViTEncoder


def _kind(value: Any) -> str:
    """Folders of the time when there was only the CNN name no `kind`."""
    if isinstance(value, Mapping):
        return str(value.get("kind", "cnn"))
    return str(getattr(value, "kind", "cnn"))


AutoencoderConfig = Annotated[
    Annotated[CNNConfig, Tag("cnn")] | Annotated[ViTConfig, Tag("vit")], Discriminator(_kind)
]
Encoder = CNNEncoder | ViTEncoder
Decoder = CNNDecoder | ViTDecoder


def build_autoencoder(
    config: AutoencoderConfig, latent_channels: int, image_size: int
) -> tuple[Encoder, Decoder]:
    """Builds both halves.

    Args:
        image_size: side of the training images; it fixes the size of a ViT's table of positions.

    Raises:
        ValueError: a side that the stride does not divide.
    """
    if image_size % config.stride:
        raise ValueError(
            f"image_size {image_size} must be divisible by the autoencoder's stride {config.stride}"
        )
    match config:
        case CNNConfig():
            return CNNEncoder(config, latent_channels), CNNDecoder(config, latent_channels)
        case ViTConfig():
            grid = image_size // config.stride
            return (
                ViTEncoder(config, latent_channels, grid),
                ViTDecoder(config, latent_channels, grid),
            )
        case _:
            raise ValueError(f"autoencoder: no builder for {type(config).__name__}")


PRESETS: dict[str, CNNConfig | ViTConfig] = {
    # Λ24-SQ and Infinity tokenizers (FLUX's autoencoder without attention): 45.0 M + 65.1 M.
    "cnn-base": CNNConfig(channels=(128, 256, 512, 512, 512), layout="ldm"),
    "cnn-base-f8": CNNConfig(channels=(128, 256, 512, 512), layout="ldm"),
    # VAR's tokenizer: 44.1 M + 64.7 M with 32 latent channels.
    "cnn-var": CNNConfig(channels=(160, 160, 320, 320, 640), layout="ldm", attention="lowest"),
    # Images of 32 to 64 pixels, stride 8.
    "cnn-mini": CNNConfig(channels=(64, 128, 128), patch_size=2, encoder_blocks=1, layout="ldm"),
    # BSQ-ViT and the Λ24-SQ reconstruction model: 86.0 M + 88.8 M at 256 pixels.
    "vit-base": ViTConfig(),
    "vit-mini": ViTConfig(patch_size=4, width=192, num_heads=3, encoder_blocks=4, decoder_blocks=4),
}


def preset(name: str) -> CNNConfig | ViTConfig:
    """The autoencoder of a name.

    Raises:
        ValueError: unknown name; lists the known ones.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}, known: {', '.join(PRESETS)}")
    return PRESETS[name]

"""ImageTokenizer: images to token pyramids and back, all that other stages see of stage 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from lambda24.common.config import Size, config_class, from_dict, to_dict
from lambda24.common.images import as_rgb, from_pil, from_uint8, to_pil
from lambda24.common.pretrained import PretrainedModel
from lambda24.tokenizer.autoencoders.build import AutoencoderConfig, build_autoencoder
from lambda24.tokenizer.autoencoders.cnn import CNNConfig
from lambda24.tokenizer.pyramid.multiscale import (
    MultiScaleQuantizer,
    PyramidConfig,
    PyramidState,
    Replacement,
)
from lambda24.tokenizer.quantizers import LeechConfig, QuantizerConfig, build_quantizer
from lambda24.tokenizer.tokens import TokenPyramid, TokenSpec


@config_class
class TokenizerConfig:
    """Everything that fixes a tokenizer's shape.

    Raises:
        ValueError: an image size that the stride and the last scale do not divide into.
    """

    image_size: Size
    pyramid: PyramidConfig
    autoencoder: AutoencoderConfig = CNNConfig()
    quantizer: QuantizerConfig = LeechConfig()

    def __post_init__(self) -> None:
        latent_size = self.pyramid.scales[-1]
        if self.image_size != latent_size * self.autoencoder.stride:
            raise ValueError(
                f"image_size must be last scale {latent_size} x stride {self.autoencoder.stride} "
                f"= {latent_size * self.autoencoder.stride}, got {self.image_size}"
            )


@dataclass(frozen=True)
class Reconstruction:
    """One training pass.

    Args:
        images: (B, 3, H, W), not clamped.
        latent: (B, C, S, S) the encoder's output, before normalisation and quantization.
        quantizer_loss: weighted scalar of the pyramid and its quantizer.
        stats: detached scalars for logging.
        prefix_images: (B, 3, H, W), not clamped: each image from its first scales only, when asked.
    """

    images: Tensor
    latent: Tensor
    quantizer_loss: Tensor
    stats: dict[str, Tensor]
    prefix_images: Tensor | None
    tokens: TokenPyramid


class ImageTokenizer(PretrainedModel):
    """A multiscale tokenizer: encoder, residual pyramid over a quantizer, decoder."""

    folder_name: ClassVar[str] = "tokenizer"

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        quantizer = build_quantizer(config.quantizer, passes_per_batch=len(config.pyramid.scales))
        encoder, decoder = build_autoencoder(config.autoencoder, quantizer.dim, config.image_size)
        self.encoder = encoder
        self.pyramid = MultiScaleQuantizer(config.pyramid, quantizer)
        self.decoder = decoder

    @property
    def spec(self) -> TokenSpec:
        return self.pyramid.spec

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(
        self, images: Tensor, num_kept: Tensor | None = None, prefix: Tensor | None = None
    ) -> Reconstruction:
        """Training pass over images (B, 3, H, W) in [-1, 1].

        Args:
            num_kept: (B,) scales that each image is decoded from; None is all of them.
            prefix: (B,) scales, 1 to S, that each of `prefix_images` is decoded from, beside the
                full decode; None decodes once.
        """
        self._check(images)
        latent = self.encoder(images).float()
        quantized = self.pyramid(latent, num_kept, prefix)
        if quantized.prefix_z_q is None:
            decoded, prefix_images = self.decoder(quantized.z_q).float(), None
        else:
            both = torch.cat([quantized.z_q, quantized.prefix_z_q])
            decoded, prefix_images = self.decoder(both).float().chunk(2)
        return Reconstruction(
            images=decoded,
            latent=latent,
            quantizer_loss=quantized.loss,
            stats=quantized.stats,
            prefix_images=prefix_images,
            tokens=quantized.tokens,
        )

    @torch.no_grad()
    def encode(self, images: Tensor, replace: Replacement | None = None) -> TokenPyramid:
        """Tokens of images (B, 3, H, W) in [-1, 1].

        Args:
            replace: see `MultiScaleQuantizer.encode`.

        Raises:
            ValueError: images of another type, rank or size.
        """
        self._check(images)
        return self.pyramid.encode(self.encoder(images), replace)

    def encode_pil(self, images: Image.Image | Sequence[Image.Image]) -> TokenPyramid:
        """Tokens of one PIL image or several, of any mode; nothing is resized.

        Raises:
            ValueError: no images, or an image of another size.
        """
        images = [images] if isinstance(images, Image.Image) else list(images)
        size = self.config.image_size
        pixels = [as_rgb(image) for image in images]
        wrong = [image.size for image in pixels if image.size != (size, size)]
        if not pixels or wrong:
            raise ValueError(
                f"images must be {size} x {size} pixels (width x height), got "
                + (f"{wrong[0][0]} x {wrong[0][1]}: resize or crop them first" if wrong else "none")
            )
        return self.encode(from_uint8(from_pil(pixels)).to(self.device))

    @torch.no_grad()
    def normalized_latent(self, images: Tensor) -> Tensor:
        """What the pyramid quantizes of images (B, 3, H, W): fp32 (B, C, S, S).

        Raises:
            ValueError: images of another size.
        """
        self._check(images)
        return self.pyramid.normalize(self.encoder(images))

    @torch.no_grad()
    def decode(self, tokens: TokenPyramid) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of all scales' tokens.

        Raises:
            ValueError: tokens of another spec, or out of range.
        """
        self._check_tokens(tokens)
        *_, last = self.pyramid.states(tokens)
        return self.decode_latent(last.latent)

    def decode_pil(self, tokens: TokenPyramid) -> list[Image.Image]:
        """RGB images of all scales' tokens; raises as `decode` does."""
        return to_pil(self.decode(tokens))

    @torch.no_grad()
    def decode_prefixes(self, tokens: TokenPyramid) -> list[Tensor]:
        """Images decoded after the first scale, the first two, ..., all scales."""
        self._check_tokens(tokens)
        return [
            self.decode_latent(state.latent)
            for state in self.pyramid.states(tokens)
            if state.scale > 0
        ]

    @torch.no_grad()
    def decode_latent(self, latent: Tensor) -> Tensor:
        """Images (B, 3, H, W), clamped to [-1, 1], of a cumulative latent (B, C, S, S)."""
        return self.decoder(latent).float().clamp(-1, 1)

    @torch.no_grad()
    def next_scale_inputs(self, tokens: TokenPyramid) -> Tensor:
        """Teacher-forcing inputs (B, L, C): for each scale, the earlier scales' sum on its grid."""
        self._check_tokens(tokens)
        inputs = [state.next_inputs for state in self.pyramid.states(tokens)]
        return torch.cat([scale for scale in inputs if scale is not None], dim=1)

    def states(self, tokens: TokenPyramid) -> Iterator[PyramidState]:
        """The state before the first scale and after each one.

        Raises:
            ValueError: tokens of another spec.
        """
        self._check_tokens(tokens)
        return self.pyramid.states(tokens)

    @torch.no_grad()
    def codes(self, tokens: Tensor) -> Tensor:
        """Codes (B, n, C) of tokens (B, n, G), as the quantizer has them."""
        return self.pyramid.quantizer.decode(tokens)

    def initial_state(self, batch_size: int) -> PyramidState:
        """The state of `batch_size` images before their first scale."""
        return self.pyramid.initial_state(batch_size, self.device)

    @torch.no_grad()
    def accumulate(self, state: PyramidState, scale_tokens: Tensor) -> PyramidState:
        """Adds the next scale's tokens (B, n_k, G); see `MultiScaleQuantizer.accumulate`."""
        return self.pyramid.accumulate(state, scale_tokens)

    def parameter_groups(self) -> dict[str, nn.Module]:
        """Parts by name, for parameter counts."""
        return {"encoder": self.encoder, "pyramid": self.pyramid, "decoder": self.decoder}

    def config_dict(self) -> dict[str, Any]:
        return to_dict(self.config)

    @classmethod
    def from_config_dict(cls, data: dict[str, Any]) -> ImageTokenizer:
        return cls(from_dict(TokenizerConfig, data))

    def _check(self, images: Tensor) -> None:
        size = self.config.image_size
        wanted = f"images must be (B, 3, {size}, {size}) floats in [-1, 1]"
        if not isinstance(images, Tensor):
            raise ValueError(f"{wanted}, got {type(images).__name__}: encode_pil takes PIL images")
        if not images.is_floating_point():
            raise ValueError(f"{wanted}, got {images.dtype}: pixels / 127.5 - 1 are wanted")
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise ValueError(f"{wanted}, got {tuple(images.shape)}")

    def _check_tokens(self, tokens: TokenPyramid) -> None:
        if tokens.spec != self.spec:
            raise ValueError(
                f"tokens have spec {tokens.spec}, but this tokenizer has spec {self.spec}"
            )

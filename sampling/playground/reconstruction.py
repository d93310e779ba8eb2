"""What a tokenizer makes of one image: its tokens and what the first scales of them decode to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from lambda24.common.images import as_rgb, from_pil, from_uint8, to_pil
from lambda24.common.metrics.pairs import psnr
from lambda24.tokenizer.model import ImageTokenizer
from lambda24.tokenizer.tokens import TokenPyramid


@dataclass(frozen=True)
class Prefix:
    """An image decoded from its first scales: their tokens, bits without entropy coding, PSNR."""

    image: Image.Image
    side: int
    tokens: int
    bits: float
    psnr: float


@dataclass(frozen=True)
class Reconstruction:
    """An image's tokens and what its first scale, the first two, ..., all scales decode to."""

    tokens: TokenPyramid
    prefixes: tuple[Prefix, ...]


@torch.inference_mode()
def reconstruct(image_tokenizer: ImageTokenizer, image: Image.Image) -> Reconstruction:
    """Encodes and decodes one image of the model's size.

    Raises:
        ValueError: an image of another size.
    """
    original = from_pil([as_rgb(image)])
    tokens = image_tokenizer.encode(from_uint8(original).to(image_tokenizer.device))
    images = [to_pil(decoded)[0] for decoded in image_tokenizer.decode_prefixes(tokens)]
    values = psnr(from_pil(images), original.expand(len(images), -1, -1, -1)).tolist()
    spec = tokens.spec
    rows = zip(images, spec.scales, spec.offsets[1:], values, strict=True)
    prefixes = [
        Prefix(decoded, side, count, count * spec.bits_per_token, value)
        for decoded, side, count, value in rows
    ]
    return Reconstruction(tokens, tuple(prefixes))


def tokens_text(tokens: TokenPyramid) -> str:
    """The indices of one image, a paragraph per scale and a line per row of its grid."""
    paragraphs = []
    for scale, side in enumerate(tokens.spec.scales):
        cells = ["/".join(map(str, token)) for token in tokens.scale(scale)[0].tolist()]
        rows = [" ".join(cells[start : start + side]) for start in range(0, len(cells), side)]
        paragraphs.append("\n".join([f"scale {scale + 1}, {side} x {side}:", *rows]))
    return "\n\n".join(paragraphs)

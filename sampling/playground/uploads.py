"""Image files from anywhere: judged by their header, then decoded and cut to a model's size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from lambda24.common.images import UnreadableImageError, decode_rgb, resize_shorter_side

# Formats that Pillow decodes in its own process: its EPS reader, for one, starts a program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 50_000_000  # decoded, with transparency, about a gigabyte at its peak
MAX_ASPECT = 20  # resizing the shorter side of a strip would make the longer one huge


def open_upload(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image file to RGB; one that is too large is refused before any pixel is read.

    Raises:
        ValueError: no image, a damaged one, too many pixels, or a very long strip.
    """
    name = Path(path).name
    try:
        with Image.open(path, formats=FORMATS) as header:
            width, height = header.size
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has too many pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image (known: {', '.join(FORMATS)})") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{name} is not a readable image: {error}") from error
    if width * height > max_pixels:
        raise ValueError(
            f"{name} has {width} x {height} = {width * height / 1e6:.1f} million pixels, "
            f"at most {max_pixels / 1e6:g} million are taken"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(
            f"{name} is {width} x {height} pixels: one side may be at most {MAX_ASPECT} times "
            "the other"
        )
    try:
        return decode_rgb(Path(path).read_bytes())
    except UnreadableImageError as error:
        raise ValueError(f"{name} is a damaged image: {error}") from error


def fit_square(image: Image.Image, side: int) -> Image.Image:
    """Shorter side to `side`, then the middle."""
    image = resize_shorter_side(image, side)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def painted_mask(layers: Sequence[Image.Image], side: int) -> Image.Image | None:
    """White where the layers of a painting are opaque, `side` x `side`; None: nothing is painted.

    A pixel counts when at least half of it is covered.
    """
    covers = [
        np.asarray(layer.convert("RGBA").getchannel("A").resize((side, side), Image.Resampling.BOX))
        for layer in layers
    ]
    mask = np.max(covers, axis=0) > 127 if covers else np.zeros((side, side), bool)
    return Image.fromarray(np.uint8(255) * mask) if mask.any() else None

"""Images between files, PIL, uint8 and floats in [-1, 1], and labelled grids of them."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

MIN_CELL = 64  # tiny images are enlarged by a whole factor to at least this many pixels
GUTTER = 2
FONT_SIZE = 14


class UnreadableImageError(ValueError):
    """An image file is missing, truncated or in no known format."""


def decode_rgb(source: bytes | str) -> Image.Image:
    """Decodes a file's bytes, or the file at a path, to RGB.

    See `as_rgb` for what becomes of other kinds of pixels.

    Raises:
        UnreadableImageError: with the decoder's reason.
    """
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        image.load()  # also closes the file
        return as_rgb(image)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any kind as RGB; nothing else in the package converts what comes from outside.

    Grey, palette and CMYK images are converted, transparency is laid on white, and an EXIF
    orientation is applied. 16-bit grey keeps its high byte; integers of 32 bits are taken for
    8 or 16 bits, and floats for parts of 1 or of 255, whichever their largest value allows.

    Raises:
        UnreadableImageError: 32-bit pixels beyond these ranges.
    """
    if image.mode == "RGB" and "transparency" not in image.info and "exif" not in image.info:
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = _from_deep_grey(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """32-bit grey, integer or float, as 8-bit grey."""
    pixels = np.asarray(image)
    low, high = float(pixels.min()), float(pixels.max())
    # Other programs write 16-bit PNGs that are read as 32-bit integers.
    deepest = 65535 if image.mode == "I" else 255
    if not 0 <= low <= high <= deepest:
        raise UnreadableImageError(
            f"32-bit grey from {low:g} to {high:g}: of what range is not known (0 to 1 or 255 of "
            "floats, 0 to 255 or 65535 of integers)"
        )
    if image.mode == "F":
        pixels = np.floor(pixels * (255 if high <= 1 else 1) + 0.5)
    elif high > 255 or image.format == "PNG":
        pixels = pixels >> 8
    return Image.fromarray(pixels.astype(np.uint8))


def resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
    """Keeps the aspect ratio; Lanczos (antialiased) down, bilinear up, untouched when it fits."""
    shorter = min(image.size)
    if shorter == size:
        return image
    target = resized_size(image.size, size)
    down = Image.Resampling.LANCZOS
    return image.resize(target, down if shorter > size else Image.Resampling.BILINEAR)


def resized_size(image_size: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height that `resize_shorter_side` gives an image of `image_size`."""
    width, height = image_size
    shorter = min(image_size)
    return max(size, round(width * size / shorter)), max(size, round(height * size / shorter))


def enlarged_part(
    image: Image.Image, enlarged: tuple[int, int], box: tuple[int, int, int, int]
) -> Image.Image:
    """What `box` (left, top, right, bottom) would cut from the image enlarged to `enlarged`.

    The rest is never made; rounding may differ by one level.
    """
    left, top, right, bottom = box
    x, y = image.width / enlarged[0], image.height / enlarged[1]
    region = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
    return image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=region)


def to_uint8(images: Tensor) -> Tensor:
    """Floats in [-1, 1] to uint8 in [0, 255]: rounds half up, clips outside; any shape."""
    scaled = (images.detach().float() + 1) * 127.5 + 0.5
    return scaled.floor().clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """uint8 in [0, 255] to fp32 in [-1, 1]; `to_uint8` is its exact inverse."""
    return images.float().div_(127.5).sub_(1)


def to_pil(images: Tensor) -> list[Image.Image]:
    """`(B, 3, H, W)` floats in [-1, 1] or uint8 to a list of B PIL images.

    Raises:
        ValueError: another shape.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
    pixels = images if images.dtype == torch.uint8 else to_uint8(images)
    arrays = rearrange(pixels.cpu(), "b c h w -> b h w c").contiguous().numpy()
    return [Image.fromarray(array) for array in arrays]


def from_pil(images: Sequence[Image.Image]) -> Tensor:
    """RGB images of one size to uint8 `(B, 3, H, W)`."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return rearrange(pixels, "b h w c -> b c h w")


def make_grid(images: Tensor, labels: Sequence[str] | None = None, columns: int = 8) -> Image.Image:
    """Draws `(B, 3, H, W)` images row by row on white.

    Args:
        labels: one per row (drawn to its left) or one per image (drawn below it).
        columns: images per row; the last row may be short.

    Raises:
        ValueError: no images, fewer than one column, or another number of labels.
    """
    tiles = to_pil(images)
    if not tiles or columns < 1:
        raise ValueError(f"a grid needs images and columns, got {len(tiles)} and {columns}")
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    if labels is not None and len(labels) not in (rows, len(tiles)):
        raise ValueError(
            f"labels must be one per row ({rows}) or per image ({len(tiles)}), got {len(labels)}"
        )
    factor = max(1, -(-MIN_CELL // min(tiles[0].size)))
    width, height = tiles[0].width * factor, tiles[0].height * factor
    font = ImageFont.load_default(FONT_SIZE)
    names = [str(label) for label in labels or ()]
    per_row = bool(names) and len(names) == rows
    margin = round(max(font.getlength(name) for name in names)) + 3 * GUTTER if per_row else 0
    caption = FONT_SIZE + 4 if names and not per_row else 0
    step_x, step_y = width + GUTTER, height + caption + GUTTER
    canvas = Image.new("RGB", (margin + columns * step_x + GUTTER, rows * step_y + GUTTER), "white")
    draw = ImageDraw.Draw(canvas)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        left, top = margin + GUTTER + column * step_x, GUTTER + row * step_y
        canvas.paste(tile.resize((width, height), Image.Resampling.NEAREST), (left, top))
        if caption:
            text = _shortened(names[index], font, width)
            draw.text((left, top + height + 1), text, "black", font)
    if per_row:
        for row, name in enumerate(names):
            middle = GUTTER + row * step_y + height // 2
            draw.text((GUTTER, middle), name, "black", font, anchor="lm")
    return canvas


def save_grid(
    images: Tensor,
    path: str | Path,
    *,
    labels: Sequence[str] | None = None,
    columns: int = 8,
) -> None:
    """Writes `make_grid(images, labels, columns)`; makes parent folders, replaces atomically."""
    save_image(make_grid(images, labels, columns), path)


def save_image(image: Image.Image, path: str | Path) -> None:
    """Writes one PIL image under a temporary name and renames it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    image.save(temporary)
    os.replace(temporary, path)


def check_image_path(path: str | Path, name: str) -> None:
    """Refuses a file that `save_image` could not write, by its suffix.

    Args:
        name: the option that gave it, in the error message.

    Raises:
        ValueError: no suffix, or not one of a format that stores RGB images.
    """
    suffix = Path(path).suffix.lower()
    try:
        image_format = Image.registered_extensions()[suffix]
        Image.new("RGB", (16, 16)).save(io.BytesIO(), format=image_format)
    except (KeyError, OSError, ValueError):
        raise ValueError(
            f"{name} {path}: no image can be written as {suffix!r}; choose .png, .jpg or .webp"
        ) from None


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"

"""How an image becomes a square of a batch; every choice comes from the sample's key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lambda24.common.data.augmentation import AugmentConfig, augment
from lambda24.common.data.batches import uniform_from_keys
from lambda24.common.images import enlarged_part, resize_shorter_side, resized_size

FLIP_STREAM, CROP_STREAM = -1, -2
MAX_ENLARGED_PIXELS = 2**25  # a strip of 2 x 30,000 would take 3 GB at 256 pixels


@dataclass(frozen=True)
class Cut:
    """Resize, crop, move and mirror.

    Args:
        size: side of the square, in pixels.
        resize: the shorter side becomes `resize * size` before the crop; None: no resizing.
        random_crop: place the crop anywhere; False takes the centre.
        augment: how to move and bend the images; None: not at all.
        flip: mirror half of the images.
    """

    size: int
    resize: float | None = 1.0
    random_crop: bool = False
    augment: AugmentConfig | None = None
    flip: bool = False

    def corners(self, keys: Tensor) -> Sequence[Sequence[float] | None]:
        """Where the crop of each key `(B,)` lies, as fractions of the room; None is the centre."""
        if not self.random_crop:
            return [None] * len(keys)
        corners: list[list[float]] = uniform_from_keys(keys, CROP_STREAM, (2,)).tolist()
        return corners

    def square(self, image: Image.Image, corner: Sequence[float] | None, name: str) -> Tensor:
        """`(3, size, size)` uint8.

        Raises:
            ValueError: the image, called `name`, is smaller than the square.
        """
        size = self.size
        shorter = min(image.size) if self.resize is None else round(self.resize * size)
        width, height = resized_size(image.size, shorter)
        if shorter < size:
            raise ValueError(
                f"{name} is {width} x {height} "
                f"pixels, smaller than image_size {size}; set data.resize to enlarge it"
            )
        spare_x, spare_y = width - size, height - size
        left, top = spare_x // 2, spare_y // 2
        if corner is not None:
            left, top = int(corner[0] * (spare_x + 1)), int(corner[1] * (spare_y + 1))
        box = (left, top, left + size, top + size)
        if width * height > max(MAX_ENLARGED_PIXELS, image.width * image.height):
            image = enlarged_part(image, (width, height), box)
        else:
            image = resize_shorter_side(image, shorter)
            if spare_x or spare_y:
                image = image.crop(box)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def vary(self, images: Tensor, keys: Tensor) -> Tensor:
        """Moves, bends and mirrors `images (B, 3, size, size)` uint8 as their keys say."""
        if self.augment is not None:
            images = augment(images, keys, self.augment)
        if self.flip:
            mirrored = (uniform_from_keys(keys, FLIP_STREAM) < 0.5)[:, None, None, None]
            images = torch.where(mirrored, images.flip(-1), images)
        return images

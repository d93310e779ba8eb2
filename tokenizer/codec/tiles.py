"""Images of any size as overlapping square tiles, and back.

An image is continued by reflection to whole tiles and cropped again. Where tiles overlap they fade
into one another linearly. Back, one row of tiles is held at a time beside the finished image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


def grid(width: int, height: int, tile: int, overlap: int) -> tuple[int, int]:
    """Columns and rows of tiles that cover an image.

    Raises:
        ValueError: an overlap that is no part of a tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap must be in [0, {tile}), got {overlap}")
    step = tile - overlap
    columns, rows = (max(1, -(-(side - overlap) // step)) for side in (width, height))
    return columns, rows


def cut(image: np.ndarray, tile: int, overlap: int) -> Iterator[np.ndarray]:
    """Tiles uint8 `(tile, tile, 3)` of an image uint8 `(H, W, 3)`, row by row."""
    height, width = image.shape[:2]
    columns, rows = grid(width, height, tile, overlap)
    step = tile - overlap
    across = _reflected(columns * step + overlap, width)
    down = _reflected(rows * step + overlap, height)
    for row in range(rows):
        lines = image[down[row * step : row * step + tile]]
        for column in range(columns):
            yield lines[:, across[column * step : column * step + tile]]


def join(
    tiles: Iterable[np.ndarray], width: int, height: int, tile: int, overlap: int
) -> np.ndarray:
    """The image uint8 `(H, W, 3)` of its tiles, in the order of `cut`."""
    columns, rows = grid(width, height, tile, overlap)
    step, source = tile - overlap, iter(tiles)
    image = np.empty((rows * step + overlap, columns * step + overlap, 3), np.uint8)
    ramp = ((np.arange(overlap) + 0.5) / max(1, overlap)).astype(np.float32)
    above: np.ndarray | None = None
    for row in range(rows):
        strip = np.empty((tile, image.shape[1], 3), np.float32)
        for column in range(columns):
            part, left = next(source).astype(np.float32), column * step
            if column and overlap:
                mixed = strip[:, left : left + overlap]
                part[:, :overlap] = mixed + ramp[:, None] * (part[:, :overlap] - mixed)
            strip[:, left : left + tile] = part
        if above is not None and overlap:
            strip[:overlap] = above + ramp[:, None, None] * (strip[:overlap] - above)
        image[row * step : row * step + tile] = np.floor(strip + 0.5)
        above = strip[step:]
    return image[:height, :width]


def _reflected(length: int, size: int) -> np.ndarray:
    """Places in an axis of `size` that continue it by reflection to `length`."""
    if size == 1:
        return np.zeros(length, np.int64)
    places = np.arange(length) % (2 * size - 2)
    return np.where(places < size, places, 2 * size - 2 - places)

"""Tiles: any size there and back."""

from __future__ import annotations

import numpy as np
import pytest

from lambda24.tokenizer.codec.tiles import cut, grid, join

SIZES = [(1, 1), (1, 50), (8, 8), (9, 8), (16, 5), (23, 40), (3, 100)]


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("overlap", [0, 1, 3, 7])
def test_tiles_of_an_image_are_the_image(width: int, height: int, overlap: int) -> None:
    image = noise(width, height)
    tiles = list(cut(image, 8, overlap))
    columns, rows = grid(width, height, 8, overlap)
    assert len(tiles) == columns * rows
    assert all(tile.shape == (8, 8, 3) for tile in tiles)
    np.testing.assert_array_equal(join(tiles, width, height, 8, overlap), image)


def test_no_more_tiles_than_needed() -> None:
    assert grid(8, 8, 8, 2) == (1, 1)
    assert grid(14, 15, 8, 2) == (2, 3)
    assert grid(1, 100, 8, 0) == (1, 13)


def test_an_image_goes_on_by_reflection() -> None:
    row = np.arange(3, dtype=np.uint8)
    (tile,) = cut(np.stack([row] * 3, axis=-1)[None], 8, 0)
    assert tile[0, :, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert (tile == tile[:1]).all()


def test_tiles_fade_into_one_another() -> None:
    """Across an overlap of four the second tile weighs 1/8, 3/8, 5/8, 7/8."""
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 200, np.uint8)
    across = join([black, white], 12, 8, 8, 4)
    assert across[0, :, 0].tolist() == [0] * 4 + [25, 75, 125, 175] + [200] * 4
    down = join([black, white], 8, 12, 8, 4)
    assert (down == across.transpose(1, 0, 2)).all()


@pytest.mark.parametrize("overlap", [-1, 8])
def test_overlaps_that_are_none(overlap: int) -> None:
    with pytest.raises(ValueError, match=rf"overlap must be in \[0, 8\), got {overlap}"):
        grid(10, 10, 8, overlap)

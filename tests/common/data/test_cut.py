"""Squares cut from images of unusual shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lambda24.common.data import cut
from lambda24.common.data.cut import Cut


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("resize", [1.0, 1.25])
@pytest.mark.parametrize("size", [(2, 300), (301, 3), (15, 16)])
@pytest.mark.parametrize("corner", [None, (0.0, 0.0), (0.4, 0.7), (0.9999, 0.9999)])
def test_only_the_square_of_a_strip_is_made(
    size: tuple[int, int],
    resize: float,
    corner: tuple[float, float] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The square is what the whole enlarged image has there."""
    image, square = noise(*size), Cut(32, resize)
    whole = square.square(image, corner, "it")
    monkeypatch.setattr(cut, "MAX_ENLARGED_PIXELS", 32 * 32)
    made: list[tuple[int, int]] = []
    enlarge = Image.Image.resize

    def recorded(self: Image.Image, size: tuple[int, int], *args: object, **options: object):
        made.append(size)
        return enlarge(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    part = square.square(image, corner, "it")
    assert made == [(32, 32)]
    assert (part.int() - whole.int()).abs().max() <= 1
    assert part.float().std() > 30


def test_a_long_strip_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 x 30,000 at 256 pixels, which enlarged would be 256 x 3,840,000."""
    monkeypatch.setattr(cut, "resize_shorter_side", None)
    for image in (noise(2, 30_000), noise(30_000, 2)):
        assert Cut(256).square(image, (0.5, 0.5), "it").shape == (3, 256, 256)


def test_large_photographs_are_reduced_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "enlarged_part", None)
    monkeypatch.setattr(cut, "MAX_ENLARGED_PIXELS", 10)
    image = noise(60, 40)
    expected = np.asarray(image.resize((24, 16), Image.Resampling.LANCZOS).crop((4, 0, 20, 16)))
    found = Cut(16).square(image, None, "it")
    assert torch.equal(found, torch.from_numpy(expected.copy()).permute(2, 0, 1))

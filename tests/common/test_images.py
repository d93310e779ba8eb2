"""Conversions, decoding of odd files, resizing, grids."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lambda24.common.images import (
    UnreadableImageError,
    check_image_path,
    decode_rgb,
    from_uint8,
    make_grid,
    resize_shorter_side,
    save_grid,
    to_pil,
    to_uint8,
)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_uint8_round_trip_is_exact() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert from_uint8(levels).aminmax() == (-1.0, 1.0)


def test_to_uint8_rounds_half_up_and_clips() -> None:
    around = torch.tensor([10.4, 10.6, 127.5, 200.4]) / 127.5 - 1
    assert to_uint8(around).tolist() == [10, 11, 128, 200]
    assert to_uint8(torch.tensor([-1.5, 1.01, 9.0])).tolist() == [0, 255, 255]


def test_to_pil_keeps_rows_and_channels() -> None:
    images = torch.zeros(2, 3, 2, 5, dtype=torch.uint8)
    images[1, 0, 1, 4] = 200
    pictures = to_pil(images)
    assert pictures[0].size == (5, 2)
    assert pictures[1].getpixel((4, 1)) == (200, 0, 0)
    with pytest.raises(ValueError, match=r"\(3, 2, 5\)"):
        to_pil(images[0])


def test_decode_converts_modes() -> None:
    grey = Image.fromarray(np.array([[10, 250]], dtype=np.uint8))
    assert decode_rgb(encoded(grey)).getpixel((0, 0)) == (10, 10, 10)
    deep = Image.fromarray(np.array([[0x0A80, 0xFFFF]], dtype=np.uint16))
    assert list(decode_rgb(encoded(deep)).getdata(0)) == [0x0A, 0xFF]
    clear = Image.new("RGBA", (1, 1), (200, 0, 0, 0))
    assert decode_rgb(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("RGB", (2, 2), (0, 0, 200)).convert("P")
    assert decode_rgb(encoded(palette)).mode == "RGB"
    assert decode_rgb(encoded(palette, transparency=0)).mode == "RGB"
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = decode_rgb(encoded(cmyk, "JPEG")).getpixel((4, 4))
    assert isinstance(red, tuple)
    assert red[0] > 200
    assert red[1] < 60


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 0x8000, 0xFFFF]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 100.4, 255]], np.float32), [0, 100, 255]),
    ],
    ids=["int32 of 8 bits", "int32 of 16 bits", "floats to 1", "floats to 255"],
)
def test_deep_grey_is_not_black(pixels: np.ndarray, expected: list[int]) -> None:
    found = decode_rgb(encoded(Image.fromarray(pixels), "TIFF"))
    assert np.asarray(found)[0].tolist() == [[level] * 3 for level in expected]


@pytest.mark.parametrize(
    "pixels", [np.array([[0, 70_000]], np.int32), np.array([[-1, 3]], np.float32)]
)
def test_deep_grey_of_an_unknown_range_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(UnreadableImageError, match=r"32-bit grey from .* is not known"):
        decode_rgb(encoded(Image.fromarray(pixels), "TIFF"))


def test_decode_applies_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (16, 8)).save(path, exif=exif)
    assert decode_rgb(str(path)).size == (8, 16)


@pytest.mark.parametrize("cut", [0, 8, 100])
def test_decode_refuses_damaged_files(cut: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    with pytest.raises(UnreadableImageError):
        decode_rgb(encoded(Image.fromarray(noise))[:cut])
    with pytest.raises(UnreadableImageError, match="FileNotFoundError"):
        decode_rgb("/nowhere/x.png")


def test_resize_shorter_side() -> None:
    image = Image.new("RGB", (30, 20))
    assert resize_shorter_side(image, 20) is image
    assert resize_shorter_side(image, 10).size == (15, 10)
    assert resize_shorter_side(image.transpose(Image.Transpose.ROTATE_90), 40).size == (40, 60)


def test_downscaling_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(resize_shorter_side(Image.fromarray(stripes), 16))
    assert abs(small[4:-4, 4:-4].astype(int) - 128).max() <= 8


def test_grid_enlarges_tiny_images_by_whole_factors() -> None:
    images = torch.full((3, 3, 9, 9), -1.0)
    grid = make_grid(images, columns=2)
    side = 9 * 8  # the smallest whole factor that gives 64 pixels
    assert grid.size == (2 * side + 6, 2 * side + 6)
    pixels = np.asarray(grid)
    assert (pixels == 0).all(axis=-1).sum() == 3 * side * side
    assert (pixels[:2] == 255).all()


def test_grid_labels_take_room() -> None:
    images = torch.zeros(4, 3, 64, 64)
    plain = make_grid(images, columns=2)
    rows = make_grid(images, ["zero", "one"], columns=2)
    cells = make_grid(images, ["a", "b", "c", "a very long label that does not fit"], columns=2)
    assert rows.width > plain.width
    assert rows.height == plain.height
    assert cells.height > plain.height
    assert cells.width == plain.width
    assert (np.asarray(rows)[:, : rows.width - plain.width] == 0).any()
    with pytest.raises(ValueError, match=r"per row \(2\) or per image \(4\), got 3"):
        make_grid(images, ["a", "b", "c"], columns=2)


def test_save_grid_leaves_one_file(tmp_path: Path) -> None:
    path = tmp_path / "samples" / "grid.png"
    save_grid(torch.zeros(1, 3, 64, 64), path, labels=["x"])
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]
    with Image.open(path) as image:
        assert image.size[0] > 64


def test_files_that_cannot_be_written_are_known_by_their_suffix(tmp_path: Path):
    for name in ("grid.png", "deep/grid.JPG", "grid.webp"):
        check_image_path(tmp_path / name, "--out")
        save_grid(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), tmp_path / name)
    for name, suffix in (("grid", ""), ("grid.pgn", ".pgn"), ("grid.xbm", ".xbm")):
        with pytest.raises(ValueError, match=rf"--out .*{name}: no image can be .* as '{suffix}'"):
            check_image_path(tmp_path / name, "--out")

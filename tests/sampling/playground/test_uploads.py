"""Uploaded files: what is refused, and that pixels are not read to refuse it."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lambda24.sampling.playground.uploads import fit_square, open_upload, painted_mask


def png_header(width: int, height: int) -> bytes:
    """A PNG that ends where its pixels would begin."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    pixels = b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + pixels + b"\0\0\0\0"


def test_an_image_comes_back_as_rgb(tmp_path: Path):
    path = tmp_path / "image.gif"
    Image.new("P", (5, 4), 0).save(path)
    image = open_upload(path)
    assert (image.mode, image.size) == ("RGB", (5, 4))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (10_000, 10_000, "10000 x 10000 = 100.0 million pixels, at most 50 million are taken"),
        (30_000, 30_000, "too many pixels"),
        (1, 30_000, "1 x 30000 pixels: one side may be at most 20 times the other"),
        (8, 8, "damaged image"),
    ],
)
def test_size_is_judged_by_the_header(tmp_path: Path, width: int, height: int, message: str):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(width, height))  # reading its pixels would be another error
    with pytest.raises(ValueError, match=f"bomb.png.*{message}"):
        open_upload(path)


def test_what_is_no_image_is_named_without_its_folder(tmp_path: Path):
    notes, broken, postscript = (tmp_path / name for name in ("notes.png", "cut.jpg", "page.eps"))
    notes.write_text("not an image")
    Image.effect_noise((64, 64), 50).save(broken)
    broken.write_bytes(broken.read_bytes()[:-500])
    Image.new("RGB", (8, 8)).save(postscript)
    for path, message in (
        (notes, r"^notes.png is not an image \(known: PNG"),
        (broken, "^cut.jpg is a damaged image"),
        (postscript, "^page.eps is not an image"),
        (tmp_path / "none.png", "^none.png is not a readable image"),
        (tmp_path, "is not a readable image"),
    ):
        with pytest.raises(ValueError, match=message):
            open_upload(path)


def test_the_middle_is_kept():
    wide = Image.new("RGB", (24, 8), "red")
    wide.paste("blue", (8, 0, 16, 8))
    assert fit_square(wide, 8).tobytes() == Image.new("RGB", (8, 8), "blue").tobytes()
    assert fit_square(wide, 16).size == (16, 16)


def test_a_mask_is_what_is_painted_for_the_most_part():
    layer = Image.new("RGBA", (32, 32))
    layer.paste("white", (0, 0, 32, 8))  # the first two rows of cells
    layer.paste("white", (0, 8, 32, 9))  # a quarter of the third
    mask = painted_mask([Image.new("RGBA", (32, 32)), layer], 8)
    assert mask is not None
    expected = np.zeros((8, 8), np.uint8)
    expected[:2] = 255
    np.testing.assert_array_equal(np.asarray(mask), expected)
    assert painted_mask([], 8) is None
    assert painted_mask([Image.new("RGBA", (32, 32))], 8) is None

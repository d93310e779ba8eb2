"""The image codec as a program: files in, files out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lambda24.scripts import compress
from lambda24.tokenizer.codec.tables import TABLES_FILE
from tests.sampling.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "pipeline"
    tiny_pipeline().save_pretrained(folder)
    compress.main(["fit", str(folder), "--data", "digits", "--count", "200"])
    assert (folder / "tokenizer" / TABLES_FILE).is_file()
    return folder


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(0)
    paths = []
    for number, size in enumerate([(16, 16), (40, 9)]):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(paths[-1])
    return paths


@pytest.mark.parametrize(
    "options", [[], ["--mode", "static"], ["--mode", "model", "--labels", "guess"]]
)
def test_encode_and_decode(
    model: Path, images: list[Path], tmp_path: Path, options: list[str]
) -> None:
    file, out = tmp_path / "coded.l24", tmp_path / "decoded"
    compress.main(["encode", str(model), *map(str, images), "--out", str(file), *options])
    compress.main(["decode", str(model), str(file), "--out", str(out)])
    found = [Image.open(path) for path in sorted(out.glob("*.png"))]
    assert [image.size for image in found] == [Image.open(path).size for path in images]
    codec, _ = compress.open_codec(str(model), None)
    for image, expected in zip(found, codec.decode(file.read_bytes()), strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_the_tokenizer_alone(model: Path, images: list[Path], tmp_path: Path) -> None:
    file, tokenizer = str(tmp_path / "coded.l24"), str(model / "tokenizer")
    compress.main(["encode", tokenizer, str(images[0]), "--out", file, "--mode", "static"])
    compress.main(["decode", tokenizer, file, "--out", str(tmp_path), "--scales", "1"])
    with pytest.raises(ValueError, match="mode 'model' needs a generator"):
        compress.main(["encode", tokenizer, str(images[0]), "--out", file, "--mode", "model"])


def test_evaluate(model: Path, tmp_path: Path) -> None:
    compress.main(
        ["evaluate", str(model), "--data", "digits", "--count", "12", "--out", str(tmp_path)]
    )
    rows = (tmp_path / "rates.csv").read_text().splitlines()
    assert rows[0].startswith("codec,setting,bits_per_pixel")
    assert [row.split(",")[1] for row in rows[1:4]] == ["fixed", "static", "model"]
    assert {row.split(",")[0] for row in rows[4:]} >= {"JPEG", "WebP"}
    fixed = float(rows[1].split(",")[3])
    assert fixed == pytest.approx(21 * np.log2(75) / 256, rel=0.01)
    assert (tmp_path / "rates.md").is_file()
    assert (tmp_path / "rates.png").is_file()


def test_what_is_wrong_is_said(model: Path, images: list[Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.l24"
    compress.main(["encode", str(model), str(images[0]), "--out", str(damaged)])
    damaged.write_bytes(damaged.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"damaged\.l24: damaged or truncated"):
        compress.main(["decode", str(model), str(damaged), "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        compress.main(["decode", str(model), str(tmp_path / "x"), "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="--labels are for mode 'model'"):
        compress.main(
            ["encode", str(model), str(images[0]), "--out", str(damaged), "--labels", "cat"]
        )

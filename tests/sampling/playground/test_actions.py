"""What the page's buttons do, without a page."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lambda24.sampling.image_files import is_saved
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.playground.actions import Actions, Fields
from lambda24.sampling.ramps import LinearRamp
from lambda24.sampling.settings import SamplingConfig
from tests.sampling.tiny_pipeline import tiny_pipeline

OFF = ("", "", "", "", "")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline(sampling=SamplingConfig(guidance_scale=LinearRamp(start=1.0, end=2.0)))


@pytest.fixture
def actions(pipeline: Pipeline, tmp_path: Path) -> Actions:
    return Actions({"tiny": pipeline}, tmp_path)


@pytest.fixture
def upload(tmp_path: Path) -> str:
    path = tmp_path / "given.png"
    Image.effect_noise((20, 16), 90).convert("RGB").save(path)
    return str(path)


def pixels(saved: list[tuple[str, str]]) -> list[bytes]:
    return [Image.open(path).convert("RGB").tobytes() for path, _ in saved]


def edited(actions: Actions, *request: Any) -> list[Any]:
    """The last that the Edit tab shows."""
    *_, last = actions.edit("tiny", *request)
    return last


def test_the_form_starts_with_the_models_own_settings(pipeline: Pipeline):
    fields = Fields.of(pipeline)
    assert fields.settings == ["linear 1 2", "1", "", "", ""]
    assert fields.classes == [("cat", "cat"), ("crane (1)", "#1"), ("crane (2)", "#2"), ("7", "7")]
    assert fields.num_scales == 3
    assert "16 x 16 pixels · 3 scales 1, 2, 4 · 21 tokens of 75 codes · 131 bits" in fields.facts
    assert Fields.of(tiny_pipeline(names=())).classes[3] == ("3", "3")


def test_generation_shows_every_scale_and_ends_with_files(actions: Actions, pipeline: Pipeline):
    *growing, last = actions.generate("tiny", "cat", "0:5", "2", *OFF[1:])
    assert [step[1] for step in growing[:2]] == [
        "image 1 to 4 of 5: scale 1 of 3 (1 x 1 tokens)",
        "image 1 to 4 of 5: scale 2 of 3 (2 x 2 tokens)",
    ]
    assert growing[-1][1] == "image 5 of 5: scale 3 of 3 (4 x 4 tokens)"
    assert not any(step[3] for step in growing)
    _, status, steps, saved = last
    assert status == "5 of class cat, done"
    assert [caption for _, caption in steps] == ["1 x 1", "2 x 2", "4 x 4"]
    expected = pipeline(["cat"] * 5, range(5), config=SamplingConfig(guidance_scale=2.0))
    assert pixels(saved) == [image.tobytes() for image in expected]
    assert steps[-1][0].tobytes() == expected[0].tobytes()
    assert [Path(path).name for path, _ in saved] == [f"cat_seed{k}.png" for k in range(5)]
    with pytest.raises(ValueError, match=r'"guidance_scale": 2\.0'):
        is_saved(Path(saved[0][0]), {})


@pytest.mark.parametrize(
    ("label", "seeds", "settings", "message"),
    [
        ("dog", "0", OFF, "unknown class 'dog'"),
        (None, "0", OFF, "unknown class ''"),
        ("cat", "one", OFF, "seeds must look like 0:8"),
        ("cat", None, OFF, "seeds must look like 0:8 .* got ''"),
        ("cat", "0", ("-", None, None, None, None), "guidance_scale must be a number"),
        ("cat", "0:65", OFF, "more than 64 images"),
        ("cat", str(2**32), OFF, r"seeds must be in \[0, 2\^32"),
        ("cat", "0", ("", "-1", "", "", ""), "temperature must be positive"),
        ("cat", "0", ("", "", "76", "", ""), r"top_k must be an integer in \[1, 75\]"),
        ("cat", "0", ("", "", "", "2", ""), r"top_p must be in \(0, 1\]"),
        ("cat", "0", ("1, 2", "", "", "", ""), "lists 2 values, but there are 3 scales"),
    ],
)
def test_mistakes_are_value_errors(
    actions: Actions, upload: str, label: Any, seeds: Any, settings: tuple[Any, ...], message: str
):
    with pytest.raises(ValueError, match=message):
        list(actions.generate("tiny", label, seeds, *settings))
    with pytest.raises(ValueError, match=message):
        edited(actions, upload, None, None, 1, label, seeds, *settings)


def test_reconstruction(actions: Actions, upload: str):
    pair, summary, rows, prefixes, tokens = actions.reconstruct("tiny", upload)
    assert [image.size for image, _ in pair] == [(16, 16)] * 2
    assert "**21 tokens, 131 bits**" in summary
    assert f"**PSNR {rows[-1][3]:.2f} dB**" in summary
    assert [row[:3] for row in rows] == [["1 x 1", 1, 6], ["2 x 2", 5, 31], ["4 x 4", 21, 131]]
    assert prefixes[-1][0].tobytes() == pair[1][0].tobytes()
    assert tokens.startswith("scale 1, 1 x 1:\n")
    assert not any(actions.reconstruct("tiny", None))


def test_edit_keeps_scales_and_what_is_not_painted(
    actions: Actions, upload: str, pipeline: Pipeline
):
    canvas = actions.canvas("tiny", upload)
    assert canvas is not None
    assert canvas["background"].size == (512, 512)
    reconstruction = actions.reconstruct("tiny", upload)[0][1][0].tobytes()
    request = ("cat", "3", *OFF)
    status, kept = edited(actions, upload, canvas, None, 3, *request)
    assert status == "kept the first 3 scales, then everything drawn anew as cat"
    assert pixels(kept) == [reconstruction]
    layer = Image.new("RGBA", (512, 512))
    layer.paste("white", (0, 0, 256, 512))
    painting = {**canvas, "layers": [layer]}
    *growing, (status, painted) = actions.edit("tiny", upload, painting, None, 0, *request)
    assert [step[0] for step in growing] == [
        f"image 1 of 1: scale {k + 1} of 3 ({side} x {side} tokens)"
        for k, side in enumerate((1, 2, 4))
    ]
    assert growing[-1][1][0][0].tobytes() == pixels(painted)[0]
    assert "50% of the pixels" in status
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    given = actions.reconstruct("tiny", upload)[0][0][0]
    expected = pipeline.edit([given], ["cat"], [3], mask=mask, config=SamplingConfig())
    assert pixels(painted) == [expected[0].tobytes()]
    assert pixels(painted) != [reconstruction]


def test_an_uploaded_mask_adds_to_the_painted_one(actions: Actions, upload: str, tmp_path: Path):
    path = tmp_path / "mask.png"
    mask = Image.new("L", (20, 16))  # as large as the image; its middle is cut out like the image's
    mask.paste(255, (2, 0, 6, 16))
    mask.save(path)
    layer = Image.new("RGBA", (512, 512))
    layer.paste("white", (0, 0, 512, 256))
    request = (0, "cat", "3", *OFF)
    status, _ = edited(actions, upload, {"layers": [layer]}, str(path), *request)
    assert "62% of the pixels" in status  # a quarter and a half, less what both cover
    mask.resize((16, 16)).save(path)
    with pytest.raises(ValueError, match=r"size of the image \(20, 16\), got \(16, 16\)"):
        edited(actions, upload, None, str(path), *request)
    with pytest.raises(ValueError, match="upload one first"):
        edited(actions, None, None, None, *request)
    with pytest.raises(ValueError, match=r"keep_scales must be in \[0, 3\], got 4"):
        edited(actions, upload, None, None, 4, *request[1:])


def test_a_mask_that_keeps_everything_is_refused(actions: Actions, upload: str, tmp_path: Path):
    path, layer = tmp_path / "mask.png", Image.new("RGBA", (512, 512))
    request = (0, "cat", "3", *OFF)
    for width, share in ((0, "0.0%"), (1, "0.4%")):  # one pixel of a cell of 16
        mask = Image.new("L", (20, 16))
        mask.paste(255, (8, 8, 8 + width, 9))
        mask.save(path)
        with pytest.raises(ValueError, match=f"nothing to draw anew.* covers {share} of"):
            edited(actions, upload, None, str(path), *request)
    layer.paste("white", (0, 0, 128, 128))
    status, _ = edited(actions, upload, {"layers": [layer]}, str(path), *request)
    assert "of the pixels drawn anew" in status

"""The models that come with the package: what their seeds draw, how large they are, offline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lambda24.common.pretrained import MODELS, packaged_folder
from lambda24.sampling import Pipeline, generate
from lambda24.scripts import sample

# Tokens of class 3, seed 5 with the model's own settings, in groups of four.
TOKENS: dict[str, list[int]] = {
    "digits": [
        152235,
        63733,
        127327,
        68769,
        63914,
        163244,
        89111,
        134910,
        35033,
        139004,
        159374,
        143371,
        41746,
        95769,
        27616,
        12348,
        69884,
        80873,
        37349,
        181808,
        57400,
        113924,
        79018,
        149591,
        78227,
        19427,
        104736,
        122448,
        179754,
        56586,
    ],
}
MAX_BYTES = {"digits": 3_000_000, "cifar10": 16_000_000}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_download(*arguments: object, **options: object) -> None:
        raise AssertionError("asked the Hub")

    monkeypatch.setattr("lambda24.common.pretrained.snapshot_download", no_download)


def packaged() -> list[str]:
    return sorted(path.parent.name for path in MODELS.glob("*/sampling.json"))


def test_every_packaged_model_is_tested() -> None:
    assert packaged() == sorted(TOKENS)


@pytest.mark.parametrize("name", packaged())
def test_seeds_have_their_tokens(name: str) -> None:
    pipeline = Pipeline.from_pretrained(name)
    labels = torch.tensor([3, 0, 1, 2])
    parts = (pipeline.generator, pipeline.image_tokenizer)
    found = generate(*parts, labels, [5, 6, 7, 8], pipeline.sampling)
    assert found.tokens.indices[0].flatten().tolist() == TOKENS[name]


@pytest.mark.parametrize("name", packaged())
def test_a_model_is_small_and_says_what_it_is(name: str) -> None:
    folder = packaged_folder(name)
    assert folder is not None
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= MAX_BYTES[name]
    card = (folder / "README.md").read_text(encoding="utf-8")
    for heading in ("## Model", "## Training data", "## Metrics", "## Training configuration"):
        assert heading in card
    assert "Not measured" not in card
    assert "Not recorded" not in card


@pytest.mark.parametrize("name", packaged())
def test_sample_draws_a_grid_by_name(name: str, tmp_path: Path) -> None:
    out = tmp_path / "samples.png"
    sample.main([name, "--labels", "all", "--seeds", "0:1", "--out", str(out)])
    assert out.stat().st_size > 1000

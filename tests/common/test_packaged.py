"""Models that come with the package, by name: found, refused, and behind a folder of the name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lambda24.common import pretrained
from lambda24.common.pretrained import download_folder, packaged_folder
from lambda24.sampling import Pipeline
from lambda24.tokenizer import ImageTokenizer
from tests.sampling.tiny_pipeline import tiny_pipeline


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation that holds "digits" alone."""
    tiny_pipeline((), num_classes=3).save_pretrained(tmp_path / "models" / "digits")
    monkeypatch.setattr(pretrained, "MODELS", tmp_path / "models")
    return tmp_path / "models"


def test_a_name_is_a_folder_of_the_package(models: Path) -> None:
    assert packaged_folder("digits") == models / "digits"
    pipeline = Pipeline.from_pretrained("digits")
    assert pipeline.digest() == Pipeline.from_pretrained(models / "digits").digest()
    image_tokenizer = ImageTokenizer.from_pretrained("digits")
    assert image_tokenizer.config == pipeline.image_tokenizer.config


def test_a_folder_here_comes_first(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_pipeline((), num_classes=5).save_pretrained("digits")
    assert Pipeline.from_pretrained("digits").generator.num_classes == 5


def test_names_without_a_model_are_refused_offline(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_download(*arguments: object, **options: object) -> None:
        raise AssertionError("asked the Hub")

    monkeypatch.setattr("lambda24.common.pretrained.snapshot_download", no_download)
    message = "'cifar10' is not part of this installation, which holds: digits"
    with pytest.raises(ValueError, match=message):
        Pipeline.from_pretrained("cifar10")
    assert packaged_folder("someone/digits") is None
    with pytest.raises(AssertionError, match="asked the Hub"):
        download_folder("someone/digits", patterns=[])


def test_rounded_weights_are_read_as_fp32(tmp_path: Path) -> None:
    pipeline = tiny_pipeline((), num_classes=3)
    pipeline.save_pretrained(tmp_path / "whole")
    pipeline.save_pretrained(tmp_path / "rounded", dtype=torch.bfloat16)
    found = Pipeline.from_pretrained(tmp_path / "rounded")
    for model, expected in (
        (found.generator, pipeline.generator),
        (found.image_tokenizer, pipeline.image_tokenizer),
    ):
        state = model.state_dict()
        for name, weight in expected.state_dict().items():
            assert state[name].dtype == weight.dtype
            if weight.is_floating_point():
                assert torch.equal(state[name], weight.bfloat16().float()), name
            else:
                assert torch.equal(state[name], weight)
    files = [tmp_path / kind / "generator" / "model.safetensors" for kind in ("whole", "rounded")]
    assert files[1].stat().st_size < 0.6 * files[0].stat().st_size
    # Written again as it is, nothing changes any more.
    found.save_pretrained(tmp_path / "again", dtype=torch.bfloat16)
    assert Pipeline.from_pretrained(tmp_path / "again").digest() == found.digest()

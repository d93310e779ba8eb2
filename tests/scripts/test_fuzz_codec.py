"""A short campaign against the codec's files, and that it would notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from lambda24.sampling import image_codec
from lambda24.scripts import compress, fuzz_codec
from tests.sampling.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "pipeline"
    tiny_pipeline().save_pretrained(folder)
    compress.main(["fit", str(folder), "--data", "digits", "--count", "100"])
    return folder


def test_damaged_files_are_refused_or_exact(model: Path) -> None:
    found = fuzz_codec.main([str(model), "--count", "300"])
    assert set(found) <= {"refused", "exact"}
    assert found["refused"] > 250


def test_wrong_images_are_noticed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checksum of tokens, damage that has a fitting checksum gives other images."""
    monkeypatch.setattr(image_codec, "content_checksum", lambda tokens, sizes: 0)
    with pytest.raises(ValueError, match=r"of 300 damaged files:\n  file \d+: other images"):
        fuzz_codec.main([str(model), "--count", "300"])

"""The program that encodes a training set; what it writes is tested with the training from it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lambda24.scripts import extract_tokens


def test_bar_counts_all_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five shards, of which the second and the last were there."""
    config = SimpleNamespace(
        tokens=str(tmp_path), tokenizer="", data=None, loop=SimpleNamespace(precision="fp32")
    )
    tokenizer = SimpleNamespace(from_pretrained=lambda path: SimpleNamespace(to=lambda device: 0))
    replaced: dict[str, Any] = {
        "load_config": lambda *args: config,
        "ImageTokenizer": tokenizer,
        "make_plan": lambda *args, **options: (SimpleNamespace(num_shards=5), None),
        "start_cache": lambda *args: None,
        "write_shards": lambda *args, **options: iter([0, 2, 3]),
    }
    for name, value in replaced.items():
        monkeypatch.setattr(extract_tokens, name, value)
    assert extract_tokens.main(["any.yaml"]) == 3
    drawn = capsys.readouterr().err
    assert "| 0/5 [" in drawn
    assert "| 5/5 [" in drawn

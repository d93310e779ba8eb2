from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lambda24.common.config import from_dict
from lambda24.scripts.reports.quantizer_comparison import ComparisonResult, run_contender
from lambda24.scripts.reports.quantizer_table import dot_plot, table
from lambda24.scripts.reports.quantizer_task import ComparisonConfig


def config(run: Path, **changes: Any) -> ComparisonConfig:
    data = {
        "run": str(run),
        "data": {"path": "digits", "image_size": 16},
        "autoencoder": {
            "kind": "cnn",
            "channels": [8, 8],
            "groups": 4,
            "encoder_blocks": 1,
            "decoder_blocks": 1,
        },
        "optimizer": {"lr": 1e-3, "warmup_steps": 0},
        "loop": {"steps": 3, "batch_size": 8},
        "evaluation": {"extractor": None, "num_images": 20},
        "seeds": [0],
        "contenders": [
            {
                "name": "ema",
                "group": "small",
                "quantizer": {"kind": "vq_ema", "dim": 4, "codebook_size": 32},
            },
            {
                "name": "gsq",
                "group": "small",
                "quantizer": {"kind": "gsq", "dim": 4, "groups": 2, "codebook_size": 16},
            },
        ],
    }
    return from_dict(ComparisonConfig, {**data, **changes})


def result(name: str, seed: int, **values: float) -> ComparisonResult:
    zeros = {
        field.name: 0.0
        for field in dataclasses.fields(ComparisonResult)
        if field.default is dataclasses.MISSING
    }
    return ComparisonResult(**{**zeros, **values, "name": name, "group": "all", "seed": seed})


@pytest.mark.parametrize("number", [0, 1])
def test_a_contender_is_trained_measured_and_remembered(tmp_path: Path, number: int) -> None:
    settings = config(tmp_path)
    contender = settings.contenders[number]
    first = run_contender(settings, contender, 0)
    assert (first.name, first.seed) == (contender.name, 0)
    assert first.bits == (5 if contender.name == "ema" else 8)
    assert first.num_tokens == 20 * 8 * 8
    assert 0 < first.entropy_bits <= first.bits
    assert 0 < first.psnr < 100
    assert first.rfid is None
    assert first.images_per_second == pytest.approx(24 / first.seconds)
    assert run_contender(settings, contender, 0) == first


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    settings = config(tmp_path / "a", seeds=[0, 1])
    again = config(tmp_path / "b")
    scores = [run_contender(settings, settings.contenders[1], seed).psnr for seed in (0, 1)]
    assert scores[0] != scores[1]
    assert run_contender(again, again.contenders[1], 0).psnr == scores[0]


def test_table_shows_mean_and_spread() -> None:
    results = [result("a", 0, psnr=20.0), result("a", 1, psnr=22.0), result("b", 0, psnr=19.0)]
    text = table(results)
    assert "| a |" in text
    assert "21.00 ± 1.41" in text
    assert "| 19.00 |" in text
    assert "rFID" not in text


def test_plot_orders_contenders_by_what_is_better() -> None:
    results = [result("bad", 0, psnr=19.0, rfid=9.0), result("good", 0, psnr=25.0, rfid=3.0)]
    for field in ("psnr", "rfid"):
        picture = dot_plot(results, field)
        assert picture.index("good") < picture.index("bad")
        assert picture.count("<circle") == 2
    with pytest.raises(ValueError, match="perceptual"):
        dot_plot(results, "perceptual")


def test_bad_comparisons_are_refused(tmp_path: Path) -> None:
    twice = [{"name": "a", "group": "g", "quantizer": {"kind": "bsq"}}] * 2
    with pytest.raises(ValueError, match="distinct names"):
        config(tmp_path, contenders=twice)
    with pytest.raises(ValueError, match="seeds"):
        config(tmp_path, seeds=[1, 1])
    with pytest.raises(ValueError, match="stride"):
        config(tmp_path, data={"path": "digits", "image_size": 15})

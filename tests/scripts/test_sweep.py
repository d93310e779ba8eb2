"""The sweep program, against the evaluation program."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lambda24.sampling.evaluation.protocol import GeneratorEvaluator
from lambda24.sampling.options import sampling_config
from lambda24.sampling.settings import SamplingConfig
from lambda24.scripts import evaluate_generator, sweep
from tests.sampling.tiny_pipeline import tiny_pipeline

CONFIG = Path(__file__).parents[2] / "configs" / "evaluation" / "digits.yaml"
OVERRIDES = [
    "data.image_size=16",
    "data.max_images=40",
    "reference=eval",
    "evaluation.num_images=20",
    "evaluation.batch_size=10",
    "evaluation.metrics.kid_subset_size=10",
    "evaluation.metrics.extractor.size=32",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "pipeline"
    sampling = SamplingConfig(temperature=0.9)
    tiny_pipeline((), sampling, num_classes=10, scales=(1, 2)).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_sweep_writes_rows_table_plot_and_the_best_setting(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["sweep.guidance_scale=[1, 4]", "sweep.top_k=[2]"]
    sweep.main([str(folder), str(CONFIG), *OVERRIDES, *grid])
    out = folder / "sweep"
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    printed = capsys.readouterr().out
    assert (out / "table.md").read_text() in printed
    best = min(rows, key=lambda row: row["gfid"])
    assert f"| {best['gfid']:.2f} |" in (out / "table.md").read_text().splitlines()[2]
    assert sampling_config(SamplingConfig(), str(out / "best.yaml"), []) == sampling_config(
        SamplingConfig(), None, [f"{k}={json.dumps(v)}" for k, v in _sampling(best).items()]
    )
    assert "\ntop_k: 2\n" in (out / "best.yaml").read_text()
    with Image.open(out / "sweep.png") as picture:
        assert picture.width > picture.height > 300
    setting = ["guidance_scale=4", "top_k=2", "temperature=0.9"]
    overrides = [f"evaluation.sampling.{text}" for text in setting]
    result = tmp_path / "result.json"
    seed = ["evaluation.first_seed=1000000", f"out={result}"]
    evaluate_generator.main([str(folder), str(CONFIG), *OVERRIDES, *overrides, *seed])
    alone = json.loads(result.read_text())
    row = rows[1]
    for name in ("gfid", "inception_score", "precision", "recall", "density", "kid_mean"):
        assert row[name] == alone[name], name
    assert _sampling(row) == alone["protocol"]["sampling"]


def _sampling(row: dict) -> dict:
    return row["protocol"]["sampling"]


def test_without_a_finite_gfid_there_is_no_best_setting(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measure = GeneratorEvaluator.measure
    monkeypatch.setattr(
        GeneratorEvaluator, "measure", lambda *a: replace(measure(*a), gfid=math.nan)
    )
    out = tmp_path / "sweep"
    grid = ["sweep.guidance_scale=[1]", f"out={out}"]
    sweep.main([str(folder), str(CONFIG), *OVERRIDES, *grid])
    assert "no gFID is finite" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [
        "rows.jsonl",
        "sweep.json",
        "sweep.png",
        "table.md",
    ]


def test_without_matplotlib_nothing_is_sampled(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r'pip install "lambda24\[plots\]"'):
        sweep.main([str(folder), str(CONFIG), *OVERRIDES, f"out={tmp_path / 'sweep'}"])
    assert not (tmp_path / "sweep").exists()

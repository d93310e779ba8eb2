"""The quickstart on a small folder of class folders, from images to metrics.json."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lambda24.common.config import load_config, save_config
from lambda24.common.training.loop import LoopConfig
from lambda24.sampling import Pipeline
from lambda24.scripts import quickstart
from lambda24.tokenizer.task import TokenizerTrainingConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 20 noisy images, dark and bright."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("bright", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.clip(rng.normal(level, 20, (40, 36, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def test_a_folder_of_images_becomes_a_measured_pipeline(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(quickstart, "IMAGES_PER_CLASS", 8)
    monkeypatch.setattr(quickstart, "TIMED_STEPS", 4)
    monkeypatch.setattr(quickstart, "MIN_STEPS", 4)
    monkeypatch.setattr(quickstart, "MAX_REFERENCE", 16)  # half of the images, but of both classes
    out = tmp_path / "out"
    quickstart.main(["--data", str(folder), "--minutes", "0.05", "--out", str(out)])
    metrics = json.loads((out / "metrics.json").read_text())
    required = [
        "psnr",
        "rfid",
        "gfid",
        "inception_score",
        "precision",
        "recall",
        "label_accuracy",
        "seconds",
    ]
    assert all(isinstance(metrics[name], float) for name in required)
    assert metrics["classifier_accuracy"] == 1.0
    assert Image.open(out / "samples.png").width > 500
    assert Image.open(out / "reconstructions.png").height > 100
    pipeline = Pipeline.from_pretrained(out / "model")
    assert pipeline.label_names == ("bright", "dark")
    assert pipeline.sampling == quickstart.SAMPLING
    assert str(out / "samples.png") in capsys.readouterr().out
    with pytest.raises(SystemExit):  # never overwrites a finished run
        quickstart.main(["--out", str(out)])


def test_a_machine_that_was_busy_while_timed_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, runs = [0.0], []

    def fit(task: Any, train: Any, *, loop: LoopConfig, run: str, **rest: Any) -> None:
        """One step of 10 images a second while timed, ten steps a second later."""
        speed = 10.0 if loop.steps == quickstart.TIMED_STEPS else 100.0
        clock[0] += (loop.steps - (runs[-1] if runs else 0)) * 10 / speed
        if loop.steps == quickstart.TIMED_STEPS:
            row = {"step": loop.steps, "loss": 1.0, "images_per_second": speed}
            (Path(run) / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        else:
            runs.append(loop.steps)

    monkeypatch.setattr(quickstart, "fit", fit)
    monkeypatch.setattr(quickstart.time, "perf_counter", lambda: clock[0])
    config = load_config(TokenizerTrainingConfig, quickstart.CONFIGS / "debug" / "tokenizer.yaml")
    loop = replace(config.loop, steps=700, batch_size=10)
    config = replace(config, loop=loop, run=str(tmp_path / "run"))
    seconds = quickstart.TIMED_STEPS + 50.0
    quickstart.fit_in(seconds, config, lambda _: None, None)  # type: ignore[arg-type, return-value]
    assert runs == [50, 500]  # 5 s of the 50, then the other 45
    runs.clear()
    quickstart.fit_in(seconds + 50, config, lambda _: None, None)  # type: ignore[arg-type, return-value]
    assert runs == [100, 700]  # never above the config's own number
    runs.clear()
    (tmp_path / "run").mkdir()
    quickstart.fit_in(seconds, config, lambda _: None, None)  # type: ignore[arg-type, return-value]
    assert runs == [50]  # a resumed run is only finished
    runs.clear()
    save_config(replace(config, loop=replace(loop, steps=70)), tmp_path / "run" / "config.yaml")
    quickstart.fit_in(seconds, config, lambda _: None, None)  # type: ignore[arg-type, return-value]
    assert runs == [70]  # as it was planned, whatever the machine does now

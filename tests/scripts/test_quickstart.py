"""The quickstart on a small folder of class folders, from images to metrics.json."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sampling import Pipeline
from scripts import quickstart


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

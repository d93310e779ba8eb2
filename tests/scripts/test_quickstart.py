"""The quickstart on a small folder of class folders, from images to metrics.json."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lambda24.common.config import load_config, save_config
from lambda24.common.data.dataset import load_dataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.training.loop import LoopConfig
from lambda24.sampling import Pipeline
from lambda24.scripts import quickstart
from lambda24.scripts.reports import quickstart_report
from lambda24.tokenizer.settings import TokenizerTrainingConfig
from tests.sampling.tiny_pipeline import tiny_pipeline


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
    monkeypatch.setattr(quickstart_report, "NUM_SAMPLES", 16)
    monkeypatch.setattr(quickstart, "TIMED_STEPS", 4)
    monkeypatch.setattr(quickstart, "MIN_STEPS", 4)
    monkeypatch.setattr(quickstart_report, "MAX_REFERENCE", 16)  # half, but of both classes
    out = tmp_path / "out"
    quickstart.main(["--data", str(folder), "--minutes", "0.05", "--out", str(out)])
    metrics = json.loads((out / "metrics.json").read_text())
    for name in ("psnr", "rfid", "seconds", "train_nll", "held_out_nll"):
        assert isinstance(metrics[name], float), name
    for row in (metrics, metrics["without_guidance"]):
        for name in ("gfid", "inception_score", "recall", "clipped_coverage", "label_accuracy"):
            assert isinstance(row[name], float), name
        assert row["memorization"]["samples"] > 0
    assert metrics["uniform_nll"] == pytest.approx(math.log(196_560))
    assert metrics["classifier_accuracy"] == 1.0
    assert Image.open(out / "samples.png").width > 500
    assert Image.open(out / "reconstructions.png").height > 100
    pipeline = Pipeline.from_pretrained(out / "model")
    assert pipeline.label_names == ("bright", "dark")
    assert pipeline.sampling == quickstart.SAMPLING
    assert pipeline.training["config"]["run"] == str(out / "stage_2")  # for the model card
    best = next((out / "stage_2" / "best").iterdir())  # the weights of the model
    kept = (best / "generator" / "model.safetensors").read_bytes()
    assert (out / "model" / "generator" / "model.safetensors").read_bytes() == kept
    assert best.name == f"step_{metrics['step']:06d}"
    evaluated = [json.loads(line) for line in (out / "stage_2" / "metrics.jsonl").open()]
    shown = next(row for row in evaluated if row["step"] == metrics["step"] and "eval/nll" in row)
    assert (shown["eval/nll"], shown["eval/train_nll"]) == (
        metrics["held_out_nll"],
        metrics["train_nll"],
    )
    printed = capsys.readouterr().out
    assert "warning: 32 training images are few: below about 1000" in printed
    assert f"{metrics['train_nll']:.2f} training, {metrics['held_out_nll']:.2f} held out" in printed
    assert "--labels bright,dark" in printed
    assert str(out / "samples.png") in printed
    with pytest.raises(SystemExit):  # never overwrites a finished run
        quickstart.main(["--out", str(out)])


def test_the_data_choose_the_tokenizer(tmp_path: Path) -> None:
    digits = quickstart.Recipe.for_data("digits")
    assert digits.tokenizer.model.pyramid.scales == (1, 2, 3, 4)
    assert digits.tokenizer.data == digits.generator.data
    assert digits.tokenizer.data.augment is not None
    for side, size in ((28, 32), (200, 64)):
        folder = tmp_path / str(side)
        for name in ("a", "b"):
            (folder / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (side, side + 40 * number)).save(folder / name / f"{number}.png")
        recipe = quickstart.Recipe.for_data(str(folder))
        for stage in (recipe.tokenizer, recipe.generator):
            assert (stage.data.path, stage.data.image_size) == (str(folder), size)
            assert not stage.data.flip
            assert stage.data.augment is not None
        assert recipe.tokenizer.model.image_size == size
        assert sum(side**2 for side in recipe.tokenizer.model.pyramid.scales) > 90


def test_a_poor_classifier_says_nothing_of_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of labels that pixels do not show, and of a single class there is no accuracy."""
    data = DataConfig(image_size=16, max_images=60)
    train, held_out = load_dataset(data, train=True), load_dataset(data, train=False)
    pipeline = tiny_pipeline((), num_classes=10, scales=(1, 2))
    images = (pipeline.image_tokenizer, train, held_out)
    found = quickstart_report.RealImages.of(*images)
    assert found.accuracy is not None
    assert found.accuracy < 0.9
    assert found.classifier is None
    assert found.reconstructions.shape == found.held_out.shape == (60, 3, 16, 16)
    monkeypatch.setattr(quickstart_report, "MIN_CLASSIFIER_ACCURACY", 0.5)
    assert quickstart_report.RealImages.of(*images).classifier is not None
    train.labels = torch.zeros_like(train.labels)
    alone = quickstart_report.RealImages.of(*images)
    assert (alone.classifier, alone.accuracy) == (None, None)


def test_an_accuracy_that_is_not_known_is_not_printed() -> None:
    row = dict.fromkeys(
        ("gfid", "inception_score", "precision", "recall", "clipped_density", "clipped_coverage"),
        0.5,
    )
    nearest = {"samples": 10.0, "held_out": 20.0, "reconstructions": 18.0}
    nats = {"train_nll": 5.0, "held_out_nll": 5.5, "uniform_nll": 12.2, "step": 700}
    other = {"psnr": 20.0, "rfid": 9.0, "bits_per_image": 500.0, "seconds": 9.0}
    metrics = {**row, **nats, **other, "memorization": nearest, "without_guidance": dict(row)}
    known = {"label_accuracy": 0.99, "classifier_accuracy": 0.97}
    metrics["without_guidance"]["label_accuracy"] = 0.91
    text = quickstart_report.table(metrics | known)
    assert re.search(r"as their label, guided / not +99.0% / 91.0%", text)
    assert "10.0 samples, 20.0 held out, 18.0 held out and reconstructed" in text
    metrics["without_guidance"]["label_accuracy"] = None
    text = quickstart_report.table(metrics | {"label_accuracy": None, "classifier_accuracy": 0.286})
    assert re.search(r"as their label, guided / not +- / -", text)
    assert "28.6%" in text
    assert "Samples are not classified: that takes 90%" in text


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
    config = load_config(TokenizerTrainingConfig, "debug/tokenizer.yaml")
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

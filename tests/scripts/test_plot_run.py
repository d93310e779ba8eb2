"""The plotting program, on run folders as training leaves them."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lambda24.common.config import to_yaml
from lambda24.common.data.dataset import load_dataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.training.run_folder import RunFolder
from lambda24.scripts import plot_run
from lambda24.scripts.reports.usage import draw_usage
from lambda24.tokenizer.autoencoders.cnn import CNNConfig
from lambda24.tokenizer.evaluation import prefix_pictures
from lambda24.tokenizer.model import ImageTokenizer, TokenizerConfig
from lambda24.tokenizer.pyramid.multiscale import PyramidConfig
from lambda24.tokenizer.quantizers import FSQConfig

DATA = DataConfig(path="digits", image_size=16, max_images=100)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage-1 run of an untrained tokenizer."""
    torch.manual_seed(0)
    config = TokenizerConfig(
        image_size=16,
        pyramid=PyramidConfig(scales=(1, 2)),
        autoencoder=CNNConfig(channels=(8, 8), patch_size=4, encoder_blocks=1, groups=4),
        quantizer=FSQConfig(levels=(5, 3)),
    )
    path = tmp_path_factory.mktemp("runs") / "stage_1"
    ImageTokenizer(config).save_pretrained(path / "tokenizer")
    folder = RunFolder(path)
    nested = "\n".join("  " + line for line in to_yaml(DATA).splitlines())
    folder.config_file.write_text(f"data:\n{nested}\n")
    write_metrics(path)
    return path


def write_metrics(path: Path, **more: float) -> None:
    path.mkdir(exist_ok=True)
    for step in (1, 2, 3):
        values = {"loss": 1.0 / step, "codes_0": 5.0, "codes_1": 7.0, "gradient_norm": 2.0, **more}
        RunFolder(path).append_metrics({"step": step, **values})


def test_a_tokenizers_run(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        plot_run, "draw_usage", lambda tokens: seen.append(tokens) or draw_usage(tokens)
    )
    plot_run.main([str(run), "--images", "16", "--pictures", "3"])
    plots = run / "plots"
    assert sorted(path.name for path in plots.iterdir()) == [
        "curves.png",
        "prefixes.png",
        "usage.png",
    ]
    assert "3 panels" in capsys.readouterr().out
    image_tokenizer, dataset = ImageTokenizer.from_pretrained(run), load_dataset(DATA, train=False)
    every = len(dataset) / 16
    images = dataset.images_uint8([int(k * every) for k in range(16)])
    expected = image_tokenizer.encode(images / 127.5 - 1)
    assert torch.equal(seen[0].indices, expected.indices)
    with Image.open(plots / "prefixes.png") as picture:
        assert picture.tobytes() == prefix_pictures(image_tokenizer, dataset, 3).tobytes()


def test_runs_are_compared(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names: list[Any] = []
    draw = plot_run.draw_comparison
    monkeypatch.setattr(
        plot_run,
        "draw_comparison",
        lambda panels, n: names.append((len(panels), n)) or draw(panels, n),
    )
    other = tmp_path / "stage_1"
    write_metrics(other, abs_log_z=3.0)
    out = tmp_path / "out"
    keys = ["--keys", "loss", "abs_log_z", "--output", str(out)]
    plot_run.main([str(run), str(other), *keys])
    assert names == [(2, [f"{run.parent.name}/stage_1", f"{tmp_path.name}/stage_1"])]
    assert [path.name for path in out.iterdir()] == ["comparison.png"]
    assert str(out / "comparison.png") in capsys.readouterr().out


def test_mistakes_are_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is not a run folder"):
        plot_run.main([str(tmp_path)])
    with pytest.raises(ValueError, match="a run is given twice"):
        plot_run.main([str(run), str(run)])
    with pytest.raises(ValueError, match="no run has the key 'los'"):
        plot_run.main([str(run), "--keys", "los"])
    with pytest.raises(ValueError, match="--images must be at least 1, got 0"):
        plot_run.main([str(run), "--images", "0", "--output", str(tmp_path)])
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"has no config\.yaml"):
        plot_run.main([str(copy), "--output", str(tmp_path)])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r'pip install "lambda24\[plots\]"'):
        plot_run.main([str(run)])

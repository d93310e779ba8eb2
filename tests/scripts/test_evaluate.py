import json
from pathlib import Path

import numpy as np
import pytest
import torch

from generator.model import GeneratorConfig, NextScaleGenerator
from sampling.pipeline import Pipeline
from scripts import evaluate_generator, evaluate_images, evaluate_tokenizer
from tokenizer.cnn import CNNConfig
from tokenizer.model import ImageTokenizer, TokenizerConfig
from tokenizer.multiscale import PyramidConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "evaluation"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained pipeline for digits of 16 pixels."""
    torch.manual_seed(0)
    config = TokenizerConfig(
        image_size=16,
        pyramid=PyramidConfig(scales=(1, 2)),
        autoencoder=CNNConfig(channels=(8, 8), patch_size=4, encoder_blocks=1, groups=4),
    )
    image_tokenizer = ImageTokenizer(config)
    sizes = GeneratorConfig(depth=1, width=16, num_heads=2, num_classes=10)
    generator = NextScaleGenerator(sizes, image_tokenizer.spec)
    path = tmp_path_factory.mktemp("models") / "pipeline"
    Pipeline(image_tokenizer, generator).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_evaluate_generator(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [
        "data.image_size=16",
        "data.max_images=60",
        "reference=eval",
        "evaluation.num_images=30",
        "evaluation.metrics.kid_subset_size=20",
        "evaluation.metrics.extractor.size=32",
        "evaluation.sampling.guidance_scale=1.5",
    ]
    evaluate_generator.main([str(folder), str(CONFIGS / "digits.yaml"), *overrides])
    result = json.loads((folder / "evaluation.json").read_text())
    assert result["gfid"] > 0
    assert result["protocol"]["reference"]["num_images"] == 60
    assert result["protocol"]["reference"]["part"] == "eval"
    assert result["protocol"]["sampling"]["guidance_scale"] == 1.5
    printed = capsys.readouterr().out
    assert f"| {result['gfid']:.2f} |" in printed
    assert "warning: 30 generated images for 1280 features" in printed


def test_evaluate_tokenizer_finds_the_tokenizer_of_a_pipeline(folder: Path, tmp_path: Path) -> None:
    overrides = [
        "data.image_size=16",
        "data.max_images=20",
        "evaluation.extractor.size=32",
        f"out={tmp_path / 'result.json'}",
    ]
    evaluate_tokenizer.main([str(folder), str(CONFIGS / "digits_tokenizer.yaml"), *overrides])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["protocol"]["num_images"] == 20
    assert result["psnr"] > 0
    assert len(result["scales"]) == 2
    assert not (folder / "reconstruction.json").exists()


def test_a_folder_without_a_pipeline_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a pipeline folder"):
        evaluate_generator.main([str(tmp_path), str(CONFIGS / "digits.yaml")])


def test_evaluate_images_ranks_noise_below_real_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", noise)
    results = {}
    for name in ("train", "eval", str(tmp_path / "noise.npz")):
        overrides = [
            "data.image_size=16",
            "data.max_images=80",
            "evaluation.metrics.kid_subset_size=20",
            "evaluation.metrics.extractor.size=32",
            f"out={tmp_path / 'result.json'}",
        ]
        evaluate_images.main([name, str(CONFIGS / "digits.yaml"), *overrides])
        results[Path(name).stem] = json.loads((tmp_path / "result.json").read_text())
    assert results["noise"]["gfid"] > 2 * results["eval"]["gfid"]
    assert results["noise"]["precision"] == 0
    assert results["train"]["protocol"]["num_images"] == 40
    assert results["train"]["protocol"]["reference"]["num_images"] == 40
    assert results["eval"]["protocol"]["num_images"] == 80
    assert "| noise.npz |" in capsys.readouterr().out

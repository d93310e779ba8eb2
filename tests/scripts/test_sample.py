"""The sampling program."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from generator.heads import CategoricalHeadConfig
from generator.model import GeneratorConfig, NextScaleGenerator
from sampling.generate import SamplingConfig
from sampling.pipeline import Pipeline
from sampling.schedules import LinearRamp
from scripts.sample import main, parse_labels, parse_seeds, sampling_config
from tokenizer.cnn import CNNConfig
from tokenizer.model import ImageTokenizer, TokenizerConfig
from tokenizer.multiscale import PyramidConfig
from tokenizer.quantizers import FSQConfig


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    image_tokenizer = ImageTokenizer(
        TokenizerConfig(
            image_size=16,
            pyramid=PyramidConfig(scales=(1, 2)),
            autoencoder=CNNConfig(channels=(8, 8), patch_size=4, groups=4),
            quantizer=FSQConfig(levels=(5, 3)),
        )
    )
    config = GeneratorConfig(
        depth=1, width=16, num_heads=2, num_classes=3, head=CategoricalHeadConfig()
    )
    return Pipeline(
        image_tokenizer, NextScaleGenerator(config, image_tokenizer.spec, ("cat", "a/b", "2"))
    )


@pytest.fixture(scope="module")
def folder(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "model"
    pipeline.save_pretrained(path)
    return path


def test_grid_and_files(folder: Path, tmp_path: Path, pipeline: Pipeline):
    out, files = tmp_path / "deep" / "grid.png", tmp_path / "files"
    arguments = [str(folder), "--labels", "cat,a/b", "--seeds", "4:7", "--batch-size", "4"]
    main([*arguments, "--out", str(out), "--folder", str(files), "top_k=3"])
    with Image.open(out) as grid:
        width, height = grid.size
    assert width > 3 * 64  # three columns and the names
    assert 2 * 64 <= height < 3 * 64
    names = [f"{label}_seed{seed}.png" for label in ("a_b", "cat") for seed in (4, 5, 6)]
    assert sorted(path.name for path in files.iterdir()) == names
    expected = pipeline(["a/b"], [5], top_k=3)[0]
    with Image.open(files / "a_b_seed5.png") as image:
        assert image.tobytes() == expected.tobytes()


def test_labels_are_names_numbers_or_all(pipeline: Pipeline):
    assert parse_labels("cat, a/b", pipeline) == [0, 1]
    assert parse_labels("1,3", pipeline) == [1, 3]  # 3 is the null class
    assert parse_labels("2", pipeline) == [2]
    assert parse_labels("all", pipeline) == [0, 1, 2]
    with pytest.raises(ValueError, match="unknown class 'cta'; closest: cat"):
        parse_labels("cta", pipeline)


def test_seeds_are_ranges_and_lists():
    assert parse_seeds("0:3") == [0, 1, 2]
    assert parse_seeds("7") == [7]
    assert parse_seeds("1, 5,10:12") == [1, 5, 10, 11]
    for text in ("a", "1:", "-1", ""):
        with pytest.raises(ValueError, match="must look like"):
            parse_seeds(text)
    with pytest.raises(ValueError, match="empty range"):
        parse_seeds("3:3")


def test_settings_come_from_the_folder_a_file_and_overrides(tmp_path: Path):
    default = SamplingConfig(guidance_scale=3.0, top_k=5)
    assert sampling_config(default, None, []) == default
    ramp = "guidance_scale={kind: linear, start: 1, end: 3}"
    changed = sampling_config(default, None, [ramp, "top_k=null"])
    assert changed == SamplingConfig(guidance_scale=LinearRamp(start=1.0, end=3.0))
    file = tmp_path / "sampling.yaml"
    file.write_text("top_p: 0.9\n")
    assert sampling_config(default, str(file), ["top_k=7"]) == SamplingConfig(top_p=0.9, top_k=7.0)
    with pytest.raises(ValueError, match="expected key=value"):
        sampling_config(default, None, ["top_k"])
    with pytest.raises(ValueError, match="topk"):
        sampling_config(default, None, ["topk=7"])

"""A tokenizer of the built-in digits that needs no training: what it encodes only has to differ."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lambda24.common.config import from_dict
from lambda24.common.data.dataset import ImageDataset, load_dataset
from lambda24.generator.settings import GeneratorTrainingConfig
from lambda24.tokenizer import ImageTokenizer, TokenizerConfig
from lambda24.tokenizer.autoencoders.cnn import CNNConfig
from lambda24.tokenizer.pyramid.multiscale import PyramidConfig

MakeConfig = Callable[..., GeneratorTrainingConfig]


@pytest.fixture(scope="session")
def image_tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    config = TokenizerConfig(
        image_size=16,
        pyramid=PyramidConfig(scales=(1, 2, 4)),
        autoencoder=CNNConfig(
            channels=(16, 32), patch_size=2, encoder_blocks=1, decoder_blocks=1, groups=8
        ),
    )
    return ImageTokenizer(config).eval()


@pytest.fixture(scope="session")
def tokenizer_folder(
    image_tokenizer: ImageTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("stage_1") / "tokenizer"
    image_tokenizer.save_pretrained(folder)
    return folder


def training_config(folder: Path, tokenizer: Path, **changes: Any) -> GeneratorTrainingConfig:
    """A run of two steps on 48 digits; keyword arguments replace whole parts."""
    data: dict[str, Any] = {
        "run": str(folder / "run"),
        "tokenizer": str(tokenizer),
        "data": {"path": "digits", "image_size": 16, "max_images": 48, "flip": True},
        "model": {"depth": 2, "width": 32, "num_heads": 2, "num_classes": 10},
        "optimizer": {"lr": 2e-3, "clip_norm": 1.0},
        "loop": {"steps": 2, "batch_size": 16, "log_every": 1},
        "num_eval_images": 8,
    }
    return from_dict(GeneratorTrainingConfig, data | changes)


@pytest.fixture
def make_config(tmp_path: Path, tokenizer_folder: Path) -> MakeConfig:
    """`training_config` in a fresh run folder."""
    return partial(training_config, tmp_path, tokenizer_folder)


def data_parts(config: GeneratorTrainingConfig) -> tuple[ImageDataset, ImageDataset]:
    """Held-out and training images of a run."""
    return load_dataset(config.data, train=False), load_dataset(config.data, train=True)

"""The trained tokenizer that stage 2 stands on: found, and still the one that a run began with."""

from __future__ import annotations

from pathlib import Path

from lambda24.common.config import load_config, shipped_configs
from lambda24.common.pretrained import CONFIG_FILE
from lambda24.common.training.run_folder import RunFolder
from lambda24.generator.settings import GeneratorTrainingConfig
from lambda24.tokenizer import ImageTokenizer
from lambda24.tokenizer.model import TokenizerConfig
from lambda24.tokenizer.settings import TokenizerTrainingConfig
from lambda24.tokenizer.token_cache import tokenizer_fingerprint


def open_tokenizer(source: str) -> ImageTokenizer:
    """The trained tokenizer of a config.

    Raises:
        ValueError: there is none, or it does not fit; names the key.
    """
    try:
        return ImageTokenizer.from_pretrained(source)
    except ValueError as error:
        raise ValueError(f"tokenizer: {error}") from error


def tokenizer_config(source: str) -> TokenizerConfig:
    """What a tokenizer is or will be, for a plan.

    Of a trained one, of a YAML file of stage 1, or of the package's config whose run is `source`.

    Raises:
        ValueError: none of these exists.
    """
    if source.endswith((".yaml", ".yml")):
        return load_config(TokenizerTrainingConfig, source).model
    if not Path(source).exists():
        for name, path in shipped_configs().items():
            if name.startswith("tokenizer/"):
                stage_1 = load_config(TokenizerTrainingConfig, path)
                if stage_1.run == source:
                    return stage_1.model
    return open_tokenizer(source).config


def check_same_tokenizer(config: GeneratorTrainingConfig, image_tokenizer: ImageTokenizer) -> None:
    """Raises ValueError if the run has been trained on other tokens than these."""
    kept = Path(config.run) / ImageTokenizer.folder_name
    # A copy without its config is not whole: the disk was full, or its first save was killed.
    if not (kept / CONFIG_FILE).is_file() or not RunFolder(config.run).checkpoints.steps():
        return
    parts = (ImageTokenizer.from_pretrained(kept), image_tokenizer)
    before, now = map(tokenizer_fingerprint, parts)
    if before != now:
        raise ValueError(
            f"tokenizer: {config.tokenizer} has changed since {config.run} was started on it "
            f"({before[:8]} there, {now[:8]} now); its copy is {kept}: use another run folder"
        )

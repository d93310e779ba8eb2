"""A tokenizer that needs no training, and runs of a few steps on it."""

from tests.generator.tiny_run import (  # noqa: F401
    image_tokenizer,
    make_config,
    tokenizer_folder,
)

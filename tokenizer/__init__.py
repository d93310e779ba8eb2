"""Images to token pyramids and back."""

from tokenizer.model import ImageTokenizer, Reconstruction, TokenizerConfig
from tokenizer.multiscale import PyramidConfig, PyramidState
from tokenizer.tokens import TokenPyramid, TokenSpec

__all__ = [
    "ImageTokenizer",
    "PyramidConfig",
    "PyramidState",
    "Reconstruction",
    "TokenPyramid",
    "TokenSpec",
    "TokenizerConfig",
]

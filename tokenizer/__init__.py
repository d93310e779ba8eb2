"""Images to token pyramids and back."""

from lambda24.tokenizer.model import ImageTokenizer, Reconstruction, TokenizerConfig
from lambda24.tokenizer.pyramid.multiscale import PyramidConfig, PyramidState
from lambda24.tokenizer.tokens import TokenPyramid, TokenSpec

__all__ = [
    "ImageTokenizer",
    "PyramidConfig",
    "PyramidState",
    "Reconstruction",
    "TokenPyramid",
    "TokenSpec",
    "TokenizerConfig",
]

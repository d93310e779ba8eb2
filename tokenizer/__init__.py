"""Images to token pyramids and back."""

from tokenizer.tokens import TokenPyramid, TokenSpec

__all__ = ["TokenPyramid", "TokenSpec"]

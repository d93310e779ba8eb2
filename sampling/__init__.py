"""Generator and tokenizer to images, and how good they are."""

from lambda24.sampling.editing import edit
from lambda24.sampling.generate import (
    Generated,
    ScaleStep,
    generate,
    generate_progressively,
)
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.settings import SamplingConfig

__all__ = [
    "Generated",
    "Pipeline",
    "SamplingConfig",
    "ScaleStep",
    "edit",
    "generate",
    "generate_progressively",
]

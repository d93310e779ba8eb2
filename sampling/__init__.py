"""Generator and tokenizer to images, and how good they are."""

from sampling.editing import edit
from sampling.generate import (
    Generated,
    ScaleStep,
    generate,
    generate_progressively,
)
from sampling.pipeline import Pipeline
from sampling.settings import SamplingConfig

__all__ = [
    "Generated",
    "Pipeline",
    "SamplingConfig",
    "ScaleStep",
    "edit",
    "generate",
    "generate_progressively",
]

"""Token pyramids to probabilities: a next-scale transformer and heads over its hidden states."""

from lambda24.generator.cache import KVCache
from lambda24.generator.config import GeneratorConfig
from lambda24.generator.model import NextScaleGenerator
from lambda24.generator.presets import PRESETS, preset

__all__ = ["PRESETS", "GeneratorConfig", "KVCache", "NextScaleGenerator", "preset"]

"""Token pyramids to probabilities: a next-scale transformer and heads over its hidden states."""

from generator.cache import KVCache
from generator.model import GeneratorConfig, NextScaleGenerator
from generator.presets import PRESETS, preset

__all__ = ["PRESETS", "GeneratorConfig", "KVCache", "NextScaleGenerator", "preset"]

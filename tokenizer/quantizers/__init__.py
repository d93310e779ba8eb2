"""Quantizers: one protocol, one file each, chosen by one line of configuration."""

from tokenizer.quantizers.base import (
    Quantized,
    Quantizer,
    connect_processes,
    process_gather,
    process_mean,
)
from tokenizer.quantizers.build import QuantizerConfig, build_quantizer
from tokenizer.quantizers.spherical import LeechConfig, SphericalConfig, SphericalQuantizer

__all__ = [
    "LeechConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "SphericalConfig",
    "SphericalQuantizer",
    "build_quantizer",
    "connect_processes",
    "process_gather",
    "process_mean",
]

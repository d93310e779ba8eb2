"""Quantizers: one protocol, one file each, chosen by one line of configuration."""

from lambda24.tokenizer.quantizers.base import (
    Quantized,
    Quantizer,
    process_gather,
    process_mean,
)
from lambda24.tokenizer.quantizers.binary import BSQConfig, LFQConfig
from lambda24.tokenizer.quantizers.build import (
    QuantizerConfig,
    build_quantizer,
    quantizer_config,
    register_quantizer,
)
from lambda24.tokenizer.quantizers.ema import EMAConfig
from lambda24.tokenizer.quantizers.fsq import FSQConfig
from lambda24.tokenizer.quantizers.gsq import GSQConfig
from lambda24.tokenizer.quantizers.lgq import LGQConfig
from lambda24.tokenizer.quantizers.simvq import SimVQConfig
from lambda24.tokenizer.quantizers.spherical import LeechConfig, SphericalConfig
from lambda24.tokenizer.quantizers.vq import VQConfig

__all__ = [
    "BSQConfig",
    "EMAConfig",
    "FSQConfig",
    "GSQConfig",
    "LFQConfig",
    "LGQConfig",
    "LeechConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "SimVQConfig",
    "SphericalConfig",
    "VQConfig",
    "build_quantizer",
    "process_gather",
    "process_mean",
    "quantizer_config",
    "register_quantizer",
]

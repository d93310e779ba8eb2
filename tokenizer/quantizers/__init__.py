"""Quantizers: one protocol, one file each, chosen by one line of configuration."""

from tokenizer.quantizers.base import (
    Quantized,
    Quantizer,
    connect_processes,
    process_gather,
    process_mean,
)
from tokenizer.quantizers.binary import BSQConfig, LFQConfig
from tokenizer.quantizers.bits import match_bits
from tokenizer.quantizers.build import QuantizerConfig, build_quantizer, quantizer_config
from tokenizer.quantizers.ema import EMAConfig
from tokenizer.quantizers.fsq import FSQConfig
from tokenizer.quantizers.gsq import GSQConfig
from tokenizer.quantizers.lgq import LGQConfig
from tokenizer.quantizers.simvq import SimVQConfig
from tokenizer.quantizers.spherical import LeechConfig, SphericalConfig
from tokenizer.quantizers.vq import VQConfig

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
    "connect_processes",
    "match_bits",
    "process_gather",
    "process_mean",
    "quantizer_config",
]

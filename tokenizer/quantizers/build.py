"""From a config to a quantizer: the tagged union of all kinds and their only builder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from lambda24.common.config import config_class, from_dict
from lambda24.tokenizer.quantizers.base import Quantizer
from lambda24.tokenizer.quantizers.binary import BinaryQuantizer, BSQConfig, LFQConfig
from lambda24.tokenizer.quantizers.ema import EMAConfig, EMAVectorQuantizer
from lambda24.tokenizer.quantizers.fsq import FSQ, FSQConfig
from lambda24.tokenizer.quantizers.gsq import GroupedSphericalQuantizer, GSQConfig
from lambda24.tokenizer.quantizers.lgq import LGQ, LGQConfig
from lambda24.tokenizer.quantizers.simvq import SimVQ, SimVQConfig
from lambda24.tokenizer.quantizers.spherical import LeechConfig, SphericalConfig, SphericalQuantizer
from lambda24.tokenizer.quantizers.vq import VectorQuantizer, VQConfig

QuantizerConfig = Annotated[
    LeechConfig
    | SphericalConfig
    | BSQConfig
    | LFQConfig
    | FSQConfig
    | VQConfig
    | EMAConfig
    | SimVQConfig
    | GSQConfig
    | LGQConfig,
    Field(discriminator="kind"),
]


def build_quantizer(config: QuantizerConfig | Mapping[str, Any]) -> Quantizer:
    """Builds the quantizer of a config or of a mapping with a `kind`.

    Raises:
        ValueError: a mapping with an unknown kind or field, or a value out of range.
    """
    if isinstance(config, Mapping):
        config = quantizer_config(config)
    match config:
        case LeechConfig() | SphericalConfig():
            return SphericalQuantizer(config)
        case BSQConfig() | LFQConfig():
            return BinaryQuantizer(config)
        case FSQConfig():
            return FSQ(config)
        case VQConfig():
            return VectorQuantizer(config)
        case EMAConfig():
            return EMAVectorQuantizer(config)
        case SimVQConfig():
            return SimVQ(config)
        case GSQConfig():
            return GroupedSphericalQuantizer(config)
        case LGQConfig():
            return LGQ(config)
        case _:
            raise ValueError(f"quantizer: no builder for {type(config).__name__}")


def quantizer_config(data: Mapping[str, Any]) -> QuantizerConfig:
    """Validates a mapping such as `{"kind": "gsq", "groups": 2}`.

    Raises:
        ValueError: every problem, one line each.
    """
    return from_dict(_QuantizerField, {"quantizer": dict(data)}).quantizer


@config_class
class _QuantizerField:
    quantizer: QuantizerConfig

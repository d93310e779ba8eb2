"""From a config to a quantizer: the tagged union of all kinds and the one place that builds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from common.config import config_class, from_dict
from tokenizer.quantizers.base import Quantizer
from tokenizer.quantizers.spherical import LeechConfig, SphericalConfig, SphericalQuantizer

QuantizerConfig = Annotated[LeechConfig | SphericalConfig, Field(discriminator="kind")]


def build_quantizer(config: QuantizerConfig | Mapping[str, Any]) -> Quantizer:
    """Builds the quantizer of a config or of a mapping with a `kind`.

    Raises:
        ValueError: a mapping with an unknown kind or field, or a value out of range.
    """
    if isinstance(config, Mapping):
        config = from_dict(_Tagged, {"quantizer": config}).quantizer
    match config:
        case LeechConfig() | SphericalConfig():
            return SphericalQuantizer(config)
        case _:
            raise ValueError(f"quantizer: no builder for {type(config).__name__}")


@config_class
class _Tagged:
    quantizer: QuantizerConfig

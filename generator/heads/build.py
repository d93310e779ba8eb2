"""From a config to a head: the tagged union of all kinds and their only builder."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lambda24.generator.heads.base import Head
from lambda24.generator.heads.bits import BitsHead, BitsHeadConfig
from lambda24.generator.heads.categorical import CategoricalHead, CategoricalHeadConfig
from lambda24.generator.heads.coordinates import CoordinatesHead, CoordinatesHeadConfig
from lambda24.generator.heads.lattice import LatticeHead, LatticeHeadConfig
from lambda24.tokenizer.tokens import TokenSpec

HeadConfig = Annotated[
    LatticeHeadConfig | CategoricalHeadConfig | CoordinatesHeadConfig | BitsHeadConfig,
    Field(discriminator="kind"),
]


def build_head(config: HeadConfig, width: int, spec: TokenSpec) -> Head:
    """Builds the head of a generator of width `width` for the tokens that `spec` describes.

    Raises:
        ValueError: a head that cannot serve the codebook of `spec`.
    """
    match config:
        case LatticeHeadConfig():
            return LatticeHead(config, width, spec)
        case CategoricalHeadConfig():
            return CategoricalHead(config, width, spec)
        case CoordinatesHeadConfig():
            return CoordinatesHead(config, width, spec)
        case BitsHeadConfig():
            return BitsHead(config, width, spec)
        case _:
            raise ValueError(f"head: no builder for {type(config).__name__}")

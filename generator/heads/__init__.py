"""Heads: hidden states to a loss over tokens, or to a distribution that tokens are drawn from."""

from lambda24.generator.heads.base import CategoricalDistribution, Distribution, Head, TokenLoss
from lambda24.generator.heads.bits import BitsDistribution, BitsHead, BitsHeadConfig
from lambda24.generator.heads.build import HeadConfig, build_head
from lambda24.generator.heads.categorical import CategoricalHead, CategoricalHeadConfig
from lambda24.generator.heads.coordinates import (
    CoordinatesDistribution,
    CoordinatesHead,
    CoordinatesHeadConfig,
)
from lambda24.generator.heads.lattice import LatticeHead, LatticeHeadConfig
from lambda24.generator.heads.lattice_distribution import LatticeDistribution, MixtureDistribution

__all__ = [
    "BitsDistribution",
    "BitsHead",
    "BitsHeadConfig",
    "CategoricalDistribution",
    "CategoricalHead",
    "CategoricalHeadConfig",
    "CoordinatesDistribution",
    "CoordinatesHead",
    "CoordinatesHeadConfig",
    "Distribution",
    "Head",
    "HeadConfig",
    "LatticeDistribution",
    "LatticeHead",
    "LatticeHeadConfig",
    "MixtureDistribution",
    "TokenLoss",
    "build_head",
]

"""Heads: hidden states to a loss over tokens, or to a distribution that tokens are drawn from."""

from generator.heads.base import CategoricalDistribution, Distribution, Head, TokenLoss
from generator.heads.bits import BitsDistribution, BitsHead, BitsHeadConfig
from generator.heads.build import HeadConfig, build_head
from generator.heads.categorical import CategoricalHead, CategoricalHeadConfig
from generator.heads.coordinates import (
    CoordinatesDistribution,
    CoordinatesHead,
    CoordinatesHeadConfig,
)
from generator.heads.lattice import LatticeHead, LatticeHeadConfig
from generator.heads.lattice_distribution import LatticeDistribution, MixtureDistribution

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

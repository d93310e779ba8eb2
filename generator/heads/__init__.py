"""Heads: hidden states to a loss over tokens, or to a distribution that tokens are drawn from."""

from generator.heads.base import CategoricalDistribution, Distribution, Head, TokenLoss
from generator.heads.build import HeadConfig, build_head
from generator.heads.categorical import CategoricalHead, CategoricalHeadConfig
from generator.heads.lattice import LatticeHead, LatticeHeadConfig
from generator.heads.lattice_distribution import LatticeDistribution, MixtureDistribution

__all__ = [
    "CategoricalDistribution",
    "CategoricalHead",
    "CategoricalHeadConfig",
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

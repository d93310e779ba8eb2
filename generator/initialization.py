"""VAR's initial weights (reference code, `init_weights`)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lambda24.generator.blocks import Block
from lambda24.generator.config import GeneratorConfig

if TYPE_CHECKING:
    from lambda24.generator.model import NextScaleGenerator


@torch.no_grad()
def initialize(generator: NextScaleGenerator) -> None:
    """Draws the weights of a generator that has no head yet: heads draw their own."""
    config = generator.config
    std = math.sqrt(1 / (3 * config.width))
    for module in generator.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.trunc_normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for table in (generator.start, generator.position_table):
        if table is not None:
            nn.init.trunc_normal_(table, std=std)
    generator.head_adaln.weight.mul_(config.adaln_init)
    # A shared AdaLN layer keeps its scale: of it, only the tables of the blocks start small.
    residual = 1 / math.sqrt(2 * config.depth)
    for block in generator.blocks:
        assert isinstance(block, Block)
        block.attention.proj.weight.mul_(residual)
        block.mlp.fc2.weight.mul_(residual)
        if block.adaln is not None:
            _scale_adaln(block.adaln.weight, config)
        elif block.adaln_table is not None:
            nn.init.normal_(block.adaln_table, std=config.width**-0.5)
            _scale_adaln(block.adaln_table, config)


def _scale_adaln(weight: Tensor, config: GeneratorConfig) -> None:
    """Shrinks the gamma rows (first third) and the scale and shift rows."""
    third = weight.shape[0] // 3
    weight[:third].mul_(config.gamma_init)
    weight[third:].mul_(config.adaln_init)

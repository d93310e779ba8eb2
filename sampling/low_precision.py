"""A generator's twin whose large matrices are cast to autocast's dtype once, not at every scale.

Autocast keeps no casts where no gradient is wanted: sampling would cast each matrix as often as
there are scales. The numbers are the same.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from lambda24.generator.blocks import Block
from lambda24.generator.model import NextScaleGenerator
from lambda24.sampling.twin import twin


def cast_generator(generator: NextScaleGenerator) -> NextScaleGenerator:
    """The generator as it is without autocast; with it, a twin with half the trunk's memory more.

    The twin shares everything but what autocast casts in the blocks. It serves under autocast only.
    """
    kind = generator.device.type
    if not torch.is_autocast_enabled(kind):
        return generator
    dtype = torch.get_autocast_dtype(kind)
    cast_weights = []
    for block in generator.blocks:
        attention, mlp = cast("Block", block).attention, cast("Block", block).mlp
        for linear in (attention.qkv, attention.proj, mlp.fc1, mlp.fc2):
            weight = linear.weight.detach().to(dtype)
            cast_weights.append((linear.weight, nn.Parameter(weight, requires_grad=False)))
    return twin(generator, cast_weights)

"""`torch.compile` for sampling: what a block does before attention and after it.

Between the two stands the cache, whose length would be compiled in. Lengths stay symbolic, so that
few compilations serve all layers and scales: one scale of a single token is its own, and so is each
autocast dtype. Tokens are those of the uncompiled sampler up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from lambda24.generator.blocks import Block
from lambda24.generator.model import NextScaleGenerator
from lambda24.sampling.twin import twin


def compiled(generator: NextScaleGenerator, backend: str = "inductor") -> NextScaleGenerator:
    """A twin over the same weights, whose blocks are compiled at their first calls.

    Args:
        generator: stays as it is; saved files of the twin are the same.
        backend: of `torch.compile`; "inductor" needs a C++ compiler on a CPU.
    """
    before: Callable[..., Any] = torch.compile(Block.before, dynamic=True, backend=backend)
    after: Callable[..., Any] = torch.compile(Block.after, dynamic=True, backend=backend)
    faster = twin(generator)
    for block in faster.blocks:
        assert isinstance(block, Block)
        # In the instance: the class's methods, which others train with, stay uncompiled.
        block.before = partial(before, block)  # type: ignore[method-assign]
        block.after = partial(after, block)  # type: ignore[method-assign]
    return faster


def is_compiled(generator: NextScaleGenerator) -> bool:
    """Whether this is a generator that `compiled` made, or a copy of one."""
    return all("before" in vars(block) for block in generator.blocks)

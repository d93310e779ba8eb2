"""A generator's twin: another module over the same weights, in which a few things may differ."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor

from lambda24.generator.model import NextScaleGenerator


def twin(
    generator: NextScaleGenerator,
    replaced: Iterable[tuple[Tensor, Tensor]] = (),
) -> NextScaleGenerator:
    """Shares parameters, buffers and masks with the generator, but for pairs of (old, new)."""
    shared = [*generator.parameters(), *generator.buffers(), generator._flex_masks]
    parts: dict[int, object] = {id(part): part for part in shared}
    parts |= {id(old): new for old, new in replaced}
    return copy.deepcopy(generator, parts)

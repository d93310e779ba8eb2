"""Scale schedules: the sides of a pyramid's grids, by name or as a list.

A name is `FAMILY_SIDE`, the side of the finest grid: the latent's. `var` is VAR's (arXiv
2404.02905), `infinity` that of Infinity's and Λ24-SQ's class-conditional models (arXiv 2412.04431,
2512.14697). `small` serves latents below 16x16, for which nothing is published.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

SCHEDULES: dict[str, tuple[int, ...]] = {
    "small_4": (1, 2, 3, 4),  # 30 tokens
    "small_8": (1, 2, 3, 5, 8),  # 103
    "var_16": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),  # 680
    "var_32": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),  # 2,240
    "infinity_16": (1, 2, 4, 6, 8, 12, 16),  # 521
    "infinity_32": (1, 2, 4, 6, 8, 12, 16, 20, 24, 32),  # 2,521
}


def resolve_scales(scales: Any) -> Any:
    """A schedule's name to its sides; a list of sides to a tuple.

    Raises:
        ValueError: no schedule of that name, or sides that are not positive and rising.
    """
    if isinstance(scales, str):
        if scales not in SCHEDULES:
            raise ValueError(f"no such schedule (allowed: a list of sides, {', '.join(SCHEDULES)})")
        return SCHEDULES[scales]
    if not isinstance(scales, Sequence):
        return scales  # this and wrong items are named by the type check that follows
    if not all(type(side) is int for side in scales):
        return tuple(scales)
    rising = all(a < b for a, b in pairwise(scales))
    if not scales or scales[0] < 1 or not rising:
        raise ValueError(f"scales must be positive and strictly increasing, got {tuple(scales)}")
    return tuple(scales)

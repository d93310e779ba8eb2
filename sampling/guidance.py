"""Classifier-free guidance: logits s * conditional + (1 - s) * unconditional (the standard way).

s = 1 is no guidance, s = 0 the unconditional model. The mixing itself is `Distribution.guided`,
VAR's convention a ramp of `sampling.ramps`; here is which scales need an unconditional pass.
"""

from __future__ import annotations

from collections.abc import Sequence


def num_paired_scales(scales: Sequence[float]) -> int:
    """How many leading scales the unconditional images must pass through.

    A guided scale attends to all earlier ones, so the pass can be skipped only behind the last
    guided scale: 0 when every s is exactly 1.
    """
    return max((k + 1 for k, scale in enumerate(scales) if scale != 1), default=0)

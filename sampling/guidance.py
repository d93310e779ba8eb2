"""Classifier-free guidance: logits s * conditional + (1 - s) * unconditional (the standard way).

s = 1 is no guidance, s = 0 the unconditional model. The mixing itself is `Distribution.guided`;
here are VAR's convention, and which scales need an unconditional pass at all.
"""

from __future__ import annotations

from collections.abc import Sequence


def var_guidance(cfg: float, num_scales: int) -> tuple[float, ...]:
    """VAR's `cfg` as standard scales: 1 + cfg * k / (S - 1).

    VAR (reference code, `autoregressive_infer_cfg`) writes (1 + t) * conditional - t *
    unconditional with t = cfg * k / (S - 1), so its cfg = 1.5 ramps from 1.0 to 2.5.
    """
    return tuple(1 + cfg * k / max(1, num_scales - 1) for k in range(num_scales))


def num_paired_scales(scales: Sequence[float]) -> int:
    """How many leading scales the unconditional images must pass through.

    A guided scale attends to all earlier ones, so the pass can be skipped only behind the last
    guided scale: 0 when every s is exactly 1.
    """
    return max((k + 1 for k, scale in enumerate(scales) if scale != 1), default=0)

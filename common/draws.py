"""Draws from categorical distributions by inverting their cumulative sums.

Rows are independent and every draw takes its own uniform, so a draw does not depend on its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LONG = 4096  # codes from which on a draw sums blocks of BLOCK; 560 divides 196,560
BLOCK = 560
# Probabilities alive while drawing: on a CPU 1 MiB, which stays in a cache
MAX_CUMULATIVE_ELEMENTS = {"cpu": 1 << 18, "other": 1 << 22}


def inverse_cdf(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draws one code a row: the first whose cumulative probability exceeds the uniform.

    Rows are independent, so a draw does not depend on its batch. Exponentials have the logits'
    dtype, sums are float64. A code of logit -inf is never drawn, whatever the uniform.

    Args:
        logits: `(..., V)`, at least one finite a row.
        uniforms: `(...)` in [0, 1).

    Returns:
        int64 `(...)`.
    """
    num_codes = logits.shape[-1]
    rows = logits.detach().reshape(-1, num_codes)
    flat = uniforms.to(torch.float64).reshape(-1, 1)
    draws = torch.empty(len(rows), 1, dtype=torch.int64, device=logits.device)
    limit = MAX_CUMULATIVE_ELEMENTS["cpu" if logits.device.type == "cpu" else "other"]
    step = max(1, limit // num_codes)
    draw = _draw if num_codes < LONG else _draw_by_blocks
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        weights = (chunk - chunk.amax(-1, keepdim=True)).exp_()
        draws[start : start + step] = draw(weights, flat[start : start + step])
    return draws.view(uniforms.shape)


def _draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Places `(n, 1)` drawn from `weights (n, m)` with `uniforms (n, 1)`."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    return _reach(cumulative, uniforms * cumulative[:, -1:])


def _draw_by_blocks(weights: Tensor, uniforms: Tensor) -> Tensor:
    """`_draw` for long rows: blocks are summed, and only the drawn one is looked into."""
    weights = nn.functional.pad(weights, (0, -weights.shape[1] % BLOCK))
    blocks = weights.unflatten(1, (-1, BLOCK))
    sums = blocks.sum(2, dtype=torch.float64)
    cumulative = sums.cumsum(-1)
    target = uniforms * cumulative[:, -1:]
    which = _reach(cumulative, target)
    before = cumulative.gather(1, which) - sums.gather(1, which)
    inside = blocks.take_along_dim(which[..., None], dim=1).squeeze(1)
    place = _reach(inside.cumsum(-1, dtype=torch.float64), (target - before).clamp_(min=0))
    return which * BLOCK + place


def _reach(cumulative: Tensor, target: Tensor) -> Tensor:
    """Places `(n, 1)` of the first sums `(n, m)` above the targets `(n, 1)`.

    A target that rounding put at the total steps back, onto the last code that is possible.
    """
    target = torch.minimum(target, below(cumulative[:, -1:]))
    return torch.searchsorted(cumulative, target, right=True)


def below(x: Tensor) -> Tensor:
    """The largest float smaller than each positive `x`."""
    return torch.nextafter(x, torch.zeros_like(x))

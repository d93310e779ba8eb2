"""The weight that gives two losses gradients of one size at a chosen layer (VQGAN, eq. 7)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EPSILON = 1e-6


def adaptive_weight(
    reference: Tensor,
    other: Tensor,
    parameter: Tensor,
    *,
    maximum: float = 1e4,
    reduce_mean: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """|d reference / d parameter| / (|d other / d parameter| + 1e-6), at most `maximum`.

    arXiv 2012.09841, eq. 7, there with the decoder's last layer; VA-VAE (arXiv 2501.01423) takes
    the encoder's. Fills no `.grad`, keeps both graphs and leaves DDP's reducer alone.

    Args:
        reference, other: scalar losses that depend on `parameter`.
        parameter: usually the weight of a last layer.
        reduce_mean: mean of a tensor over processes. With it the gradients are those of the losses
            averaged over processes, so the weight does not depend on how a batch is spread.

    Returns:
        A detached fp32 scalar.
    """
    norms = []
    for loss in (reference, other):
        (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        gradient = gradient.detach()
        norms.append((gradient if reduce_mean is None else reduce_mean(gradient)).norm())
    ratio: Tensor = norms[0] / (norms[1] + EPSILON)
    return ratio.clamp(max=maximum).to(torch.float32)

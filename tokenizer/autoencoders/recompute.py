"""Activation checkpointing: blocks whose inner activations are computed again for the gradient."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_layers(
    layers: Iterable[nn.Module], x: Tensor, recomputed: tuple[type[nn.Module], ...]
) -> Tensor:
    """Applies layers in order; those of `recomputed` types keep only their input for the gradient.

    Values and gradients are those of the plain chain. Without gradients nothing is kept anyway and
    the layers just run. The layers must not draw random numbers: none of ours does.
    """
    for layer in layers:
        if isinstance(layer, recomputed) and torch.is_grad_enabled():
            x = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)
        else:
            x = layer(x)
    return x

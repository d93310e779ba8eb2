"""Class modulation: LayerNorm, scale and shift before a branch; the gated residual sum behind it.

On a CPU both run in parts that stay in the cache, with the gradient in closed form; elsewhere in
plain form, which compilers fuse. The residual stream stays in its own dtype (fp32), the branch in
that of autocast. Shapes: B images, n tokens, W width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lambda24.generator.cpu_forms.tiles import tiles, wants_tiles

EPS = 1e-6
SMALL_IMAGE = 1 << 14  # below this many numbers, starting operators for each image costs more


def modulate(x: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """LN(x) (1 + scale) + shift, without learned parameters in the norm.

    Args:
        x: (B, n, W).
        scale: (B, 1, W), like shift.
        shift: (B, 1, W).
        dtype: of the result; that of x when left out.
    """
    dtype = dtype or x.dtype
    if wants_tiles(x) and x[:1].numel() >= SMALL_IMAGE:
        out: Tensor = _ImageModulate.apply(x, scale, shift, dtype)
        return out
    return plain_modulate(x, scale, shift, dtype)


def plain_modulate(x: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """`modulate` for GPUs and compilers."""
    normed = F.layer_norm(x, x.shape[-1:], eps=EPS)
    return torch.addcmul(shift, normed, 1 + scale).to(dtype)


def add_gated(x: Tensor, branch: Tensor, gamma: Tensor) -> Tensor:
    """x + gamma * branch, in the dtype of x: (B, n, W), (B, n, W), (B, 1, W)."""
    if wants_tiles(x):
        out: Tensor = _TiledAddGated.apply(x, branch, gamma)
        return out
    return plain_add_gated(x, branch, gamma)


def plain_add_gated(x: Tensor, branch: Tensor, gamma: Tensor) -> Tensor:
    """`add_gated` for GPUs and compilers."""
    return torch.addcmul(x, branch.to(x.dtype), gamma)


class _ImageModulate(torch.autograd.Function):
    """Scale and shift are an image's affine parameters: PyTorch's kernels do all in one pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
        out = torch.empty(x.shape, dtype=dtype)
        mean, rstd = (x.new_empty(*x.shape[:2], 1) for _ in range(2))
        gain = 1 + scale
        for image in range(len(x)):
            out[image], mean[image], rstd[image] = torch.native_layer_norm(
                x[image], x.shape[-1:], gain[image, 0], shift[image, 0], EPS
            )
        ctx.save_for_backward(x, gain, mean, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gain, mean, rstd = ctx.saved_tensors
        grad_x, grad_scale, grad_shift = (torch.empty_like(part) for part in (x, gain, gain))
        for image in range(len(x)):
            weight = gain[image, 0]
            grad_x[image], grad_scale[image, 0], grad_shift[image, 0] = (
                torch.ops.aten.native_layer_norm_backward(
                    grad[image].to(x.dtype),
                    x[image],
                    x.shape[-1:],
                    mean[image],
                    rstd[image],
                    weight,
                    weight,  # of the bias only the shape counts
                    (True, True, True),
                )
            )
        return grad_x, grad_scale, grad_shift, None


class _TiledAddGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, gamma: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for tile in tiles(x):
            torch.addcmul(x[tile], branch[tile].to(x.dtype), gamma[tile[0]], out=out[tile])
        ctx.save_for_backward(branch, gamma)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        branch, gamma = ctx.saved_tensors
        grad_branch, grad_gamma = torch.empty_like(branch), torch.zeros_like(gamma)
        for tile in tiles(grad):
            gate = gamma[tile[0]]
            if grad_branch.dtype == grad.dtype:
                torch.mul(grad[tile], gate, out=grad_branch[tile])
            else:
                grad_branch[tile] = grad[tile] * gate
            grad_gamma[tile[0]] += (grad[tile] * branch[tile]).sum(1, keepdim=True)
        return grad, grad_branch, grad_gamma

"""Queries and keys of cosine attention: unit length, a temperature for queries, then rotated.

The plain form costs a dozen passes over memory forward and two dozen backward, which on a CPU takes
longer than the rest of attention. There it runs in tiles that stay in the cache, with the gradient
in closed form, written where the projection's gradient reads it. Shapes: B images, n tokens, H
heads, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lambda24.generator.cpu_forms.tiles import tiles, wants_tiles
from lambda24.generator.embeddings import rotate

EPS = 1e-12

Heads = tuple[Tensor, Tensor, Tensor]


def cosine_heads(qkv: Tensor, temperature: Tensor, rope: Tensor | None) -> Heads:
    """Queries R(temperature * q / |q|), keys R(k / |k|) and values, (B, n, H, D) each.

    Computed in fp32, returned in the dtype of `qkv`.

    Args:
        qkv: (B, n, 3H, D): queries, keys, values.
        temperature: (H,).
        rope: cosines and sines (2, n, D/2) of the rotation R, or None.
    """
    if wants_tiles(qkv):
        found: Heads = _TiledCosineHeads.apply(qkv, temperature, rope)
        return found
    return plain_cosine_heads(qkv, temperature, rope)


def plain_cosine_heads(qkv: Tensor, temperature: Tensor, rope: Tensor | None) -> Heads:
    """`cosine_heads` for GPUs and compilers, which fuse it themselves."""
    count = len(temperature)
    qk, v = qkv.split((2 * count, count), dim=2)
    with torch.autocast(qkv.device.type, enabled=False):
        wide = qk.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp_min(EPS)
        factor = torch.cat([temperature.float(), torch.ones_like(temperature).float()])
        wide = wide * (factor[:, None] / length)
        q, k = (rotate(wide, rope) if rope is not None else wide).to(qkv.dtype).chunk(2, dim=2)
    return q, k, v


class _TiledCosineHeads(torch.autograd.Function):
    """With y = R(t x / |x|): dx = t / |x| R^T (g - y (y.g) / t^2)."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, temperature: Tensor, rope: Tensor | None) -> Heads:
        count = len(temperature)
        factor = temperature.new_ones(2 * count, 1, dtype=torch.float32)  # t, 1 for keys
        factor[:count, 0] = temperature.detach()
        qk = qkv[:, :, : 2 * count]
        out = torch.empty(qk.shape, dtype=qk.dtype)
        gain = torch.empty((*qk.shape[:-1], 1))
        for tile in tiles(qk):
            wide = qk[tile].float()
            length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp_min_(EPS)
            torch.div(factor, length, out=gain[tile])
            _write_turned(out[tile], wide * gain[tile], _part(rope, tile), 1)
        ctx.save_for_backward(out, gain, factor, rope)
        q, k = out.chunk(2, dim=2)
        return q, k, qkv[:, :, 2 * count :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        out, gain, factor, rope = ctx.saved_tensors
        count = len(factor) // 2
        grad_qkv = out.new_empty(*out.shape[:2], 3 * count, out.shape[3])
        grad_qkv[:, :, 2 * count :] = grads[2]
        grad_temperature = torch.zeros_like(factor[:count])
        for part, grad in enumerate(grads[:2]):
            heads = slice(part * count, (part + 1) * count)
            y_all, gains, scale = out[:, :, heads], gain[:, :, heads], factor[heads]
            for tile in tiles(y_all):
                wide, y = grad[tile].float(), y_all[tile].float()
                dot = (wide * y).sum(-1, keepdim=True).div_(scale)  # (b, n, H, 1)
                if part == 0:
                    grad_temperature += dot.sum((0, 1))
                wide = torch.addcmul(wide, y, dot.div_(scale), value=-1).mul_(gains[tile])
                _write_turned(grad_qkv[tile][:, :, heads], wide, _part(rope, tile), -1)
        return grad_qkv, grad_temperature.squeeze(-1), None


def _part(rope: Tensor | None, tile: tuple[slice, slice]) -> Tensor | None:
    return rope[:, tile[1]] if rope is not None else None


def _write_turned(out: Tensor, x: Tensor, rope: Tensor | None, sign: int) -> None:
    """Writes `rotate(x)`, by the angles or, with sign -1, back, into `out`."""
    if rope is None:
        out.copy_(x)
        return
    cos, sin = rope[:, :, None, :]  # (n, 1, D/2)
    first, second = x.chunk(2, dim=-1)
    turned = out if out.dtype == x.dtype else torch.empty_like(x)
    low, high = turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=low).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=high).addcmul_(first, sin, value=sign)
    if turned is not out:
        out.copy_(turned)

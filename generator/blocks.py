"""The transformer block: cosine attention and MLP, each modulated by the class (AdaLN).

x + gamma * f(LN(x) * (1 + scale) + shift), as in VAR (arXiv 2404.02905) and Infinity (2412.04431).

Shapes: B images, n tokens, W width, H heads, D head channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lambda24.generator.cpu_forms.adaln import add_gated, modulate
from lambda24.generator.cpu_forms.cosine import cosine_heads
from lambda24.generator.cpu_forms.tiles import wants_cpu_form
from lambda24.generator.embeddings import rotate

# Stores a layer's new keys and values, returns all of them: `KVCache.append` of that layer.
Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# AdaLN's (gamma1, gamma2, scale1, scale2, shift1, shift2).
Vectors = tuple[Tensor, ...]

MAX_LOG_TEMPERATURE = math.log(100)


class Attention(nn.Module):
    """Multi-head attention with optional cosine similarity and rotary positions.

    Cosine attention: q and k have unit length, logits are multiplied by a learned temperature a
    head (starts at 4, at most 100). q and v have biases, k none.
    """

    def __init__(self, width: int, num_heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = width // num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        self.log_temperature: nn.Parameter | None = None
        if qk_norm:
            self.log_temperature = nn.Parameter(torch.full((num_heads,), math.log(4)))

    def forward(self, x: Tensor, rope: Tensor | None, mask: Any, extend: Extend | None) -> Tensor:
        """x (B, n, W); `rope` (2, n, D/2) or None; `mask` boolean (n, n), BlockMask or None."""
        return self.merge(self.attend(*self.heads(x, rope), mask, extend))

    def heads(self, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, n, D)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = rearrange(F.linear(x, self.qkv.weight, bias), "b n (h d) -> b n h d", d=self.head_dim)
        if self.log_temperature is not None:
            temperature = self.log_temperature.clamp(max=MAX_LOG_TEMPERATURE).exp()
            q, k, v = cosine_heads(qkv, temperature, rope)
        else:
            qk, v = qkv.split((2 * self.num_heads, self.num_heads), dim=2)
            qk = rotate(qk.float(), rope).to(qk.dtype) if rope is not None else qk
            q, k = qk.chunk(2, dim=2)
        q, k, v = (rearrange(part, "b n h d -> b h n d") for part in (q, k, v))
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Any, extend: Extend | None) -> Tensor:
        """Softmax attention (B, H, n, D), to what `extend` adds, too."""
        if extend is not None:
            k, v = extend(k, v)
            q = q.to(k.dtype)
        scale = 1.0 if self.log_temperature is not None else self.head_dim**-0.5
        return attend(q, k, v, mask, scale)

    def merge(self, out: Tensor) -> Tensor:
        """Output (B, n, W) of what the heads found, (B, H, n, D)."""
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float) -> Tensor:
    """Softmax attention (B, H, n, D); `mask` is boolean (n, n), a flex BlockMask or None."""
    if mask is not None and not isinstance(mask, Tensor):
        return _flex_attention()(q, k, v, block_mask=mask, scale=scale)
    if wants_cpu_form(q) and q.dtype == torch.bfloat16 and q.requires_grad:
        return _plain_attention(q, k, v, mask, scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Two matrix products: PyTorch's fused CPU kernel has a slow bf16 backward (4 times)."""
    scores = torch.matmul(q * scale if scale != 1 else q, k.transpose(-1, -2))
    if mask is not None:
        scores += torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    return torch.matmul(scores.softmax(dim=-1), v)


@cache
def _flex_attention() -> Any:
    """CUDA only, not run on a GPU by the authors. Uncompiled it would build the score matrix."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


class FeedForward(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        # The exact GELU is within 5e-4 of the tanh form, less than bf16 rounding, and PyTorch's
        # CPU kernel for it is 5 times faster: the tanh form would cost as much as both matrices.
        exact = hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu"
        return self.fc2(F.gelu(hidden, approximate="none" if exact else "tanh"))


class DropPath(nn.Module):
    """Stochastic depth: leaves out an image's branch by setting its gamma to zero.

    What is kept is scaled up. The rate is a tensor, so that one compilation serves all blocks.
    """

    kept: Tensor

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.register_buffer("kept", torch.tensor(1 - drop_prob), persistent=False)

    def forward(self, gamma: Tensor) -> Tensor:
        """gamma (B, 1, W), modified in training only."""
        if not self.training:
            return gamma
        draws = torch.rand(len(gamma), 1, 1, device=gamma.device)
        return gamma * ((draws < self.kept) / self.kept)


class Block(nn.Module):
    """Attention and MLP under AdaLN.

    Args:
        shared_adaln: the six vectors come from one linear layer of the network plus this block's
            learned table; otherwise from this block's own linear layer.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        qk_norm: bool,
        shared_adaln: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads, qk_norm=qk_norm)
        self.mlp = FeedForward(width, round(width * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.adaln_table: nn.Parameter | None = None
        self.adaln: nn.Linear | None = None
        if shared_adaln:
            self.adaln_table = nn.Parameter(torch.empty(6, width))
            self.adaln_table.no_weight_decay = True  # type: ignore[attr-defined]
        else:
            self.adaln = nn.Linear(width, 6 * width)

    def forward(
        self,
        x: Tensor,
        condition: Tensor | Vectors,
        rope: Tensor | None,
        mask: Any,
        extend: Extend | None,
    ) -> Tensor:
        """x (B, n, W); `condition` is that of `vectors`, or what it returned."""
        if isinstance(condition, Tensor):
            condition = self.vectors(condition, x.dtype)
        out = self.attention.attend(*self.before(x, condition, rope), mask, extend)
        return self.after(x, out, condition)

    def before(
        self, x: Tensor, vectors: Vectors, rope: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, n, D): all before positions meet."""
        _, _, scale, _, shift, _ = vectors
        return self.attention.heads(modulate(x, scale, shift, _dtype(x)), rope)

    def after(self, x: Tensor, out: Tensor, vectors: Vectors) -> Tensor:
        """The block's result (B, n, W) from what attention found, (B, H, n, D)."""
        gamma1, gamma2, _, scale, _, shift = vectors
        x = add_gated(x, self.attention.merge(out), self.drop_path(gamma1))
        mixed = self.mlp(modulate(x, scale, shift, _dtype(x)))
        return add_gated(x, mixed, self.drop_path(gamma2))

    def vectors(self, condition: Tensor, dtype: torch.dtype) -> Vectors:
        """The six vectors (B, 1, W) of SiLU(class) (B, W), or of the shared ones (B, 6, W)."""
        with torch.autocast(condition.device.type, enabled=False):
            if self.adaln is not None:
                vectors = rearrange(self.adaln(condition), "b (v w) -> b v w", v=6)
            else:
                assert self.adaln_table is not None
                vectors = condition + self.adaln_table
        return vectors.to(dtype).unsqueeze(2).unbind(1)  # six (B, 1, W)


def _dtype(x: Tensor) -> torch.dtype:
    """What branches compute in: autocast's dtype, where it is on."""
    autocast = torch.is_autocast_enabled(x.device.type)
    return torch.get_autocast_dtype(x.device.type) if autocast else x.dtype

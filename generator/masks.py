"""Who may attend to whom: a token sees its own step and all earlier ones (a step is a scale, or a
phase of one).

Training over all steps at once needs this mask; step-by-step sampling with a KV cache does not
(what is cached is earlier, and inside a step attention is full). Dense boolean masks serve SDPA
everywhere; on CUDA long pyramids use FlexAttention, which skips the empty blocks. The CUDA branch
has not been run by the authors: no GPU was at hand.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from lambda24.tokenizer.tokens import TokenSpec

# Below this length the dense mask costs less than compiling FlexAttention saves.
FLEX_MIN_LENGTH = 512


def scale_ids(spec: TokenSpec) -> Tensor:
    """Index of the scale of each flat position, int64 (L,)."""
    lengths = torch.tensor(spec.scale_lengths)
    return torch.arange(spec.num_scales).repeat_interleave(lengths, output_size=spec.length)


def block_causal_mask(ids: Tensor) -> Tensor:
    """Boolean (L, L) of the steps `ids` (L,); rows are queries, True where attention is allowed."""
    return ids[:, None] >= ids[None, :]


def wants_flex_attention(spec: TokenSpec, device: torch.device) -> bool:
    """Whether the FlexAttention kernel should replace SDPA with a dense mask."""
    if device.type != "cuda" or spec.length < FLEX_MIN_LENGTH:
        return False
    return importlib.util.find_spec("triton") is not None


def flex_block_mask(ids: Tensor) -> Any:
    """The same mask as a FlexAttention `BlockMask`. Not run on a GPU by the authors."""
    from torch.nn.attention.flex_attention import create_block_mask

    length, device = len(ids), ids.device

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ids[query] >= ids[key]

    return create_block_mask(allowed, None, None, length, length, device=str(device))

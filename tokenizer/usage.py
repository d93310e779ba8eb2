"""How many codes tokens use, and how evenly: of a batch, of a finished set, of a training window.

With G > 1 codebooks a token, entropies are summed over codebooks (bits of a token if they were
independent), numbers of codes too; perplexities are geometric means. Entropies are plug-in
estimates, at most log2 of the number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lambda24.tokenizer.quantizers.base import Collective
from lambda24.tokenizer.tokens import TokenPyramid, TokenSpec


def entropy_bits(counts: Tensor) -> Tensor:
    """Bits (...) of the distributions with counts (..., K), zeros allowed, in their own dtype."""
    share = counts / counts.sum(dim=-1, keepdim=True)
    return -torch.special.xlogy(share, share).sum(dim=-1) / math.log(2)


def perplexity(entropies: Tensor) -> Tensor:
    """Geometric mean of the perplexities of codebooks with entropies (G,) in bits."""
    return entropies.mean().exp2()


@torch.no_grad()
def batch_usage(indices: Tensor) -> dict[str, Tensor]:
    """Scalars `codes`, `entropy_bits` and `perplexity` of one scale's indices (B, n_k, G).

    Reads nothing back from the device, and costs a sort of the tokens, whatever the codebook.
    """
    ordered = indices.flatten(0, 1).T.contiguous().sort(dim=-1).values  # (G, N)
    first = torch.searchsorted(ordered, ordered)
    after = torch.searchsorted(ordered, ordered, right=True)
    is_first = first == torch.arange(ordered.shape[-1], device=ordered.device)
    # Each code's count at the first of its tokens, zero at the others.
    counts = ((after - first) * is_first).float()
    entropies = entropy_bits(counts)  # (G,)
    return {
        "codes": is_first.sum(),
        "entropy_bits": entropies.sum(),
        "perplexity": perplexity(entropies),
    }


@dataclass(frozen=True)
class CodeUsage:
    """How the codes of a set of tokens are used.

    Usage is the share of all codes of a token's codebooks that occur.
    """

    codes_used: int
    usage: float
    entropy_bits: float
    perplexity: float


def code_usage(indices: Tensor, codebook_sizes: Sequence[int]) -> CodeUsage:
    """Of a finished set of tokens `(..., G)`, in double precision."""
    columns = indices.flatten(0, -2).unbind(-1)
    counts = [column.unique(return_counts=True)[1].double() for column in columns]
    entropies = torch.stack([entropy_bits(part) for part in counts])
    used = sum(len(part) for part in counts)
    return CodeUsage(
        codes_used=used,
        usage=used / sum(codebook_sizes),
        entropy_bits=float(entropies.sum()),
        perplexity=float(perplexity(entropies)),
    )


def usage(tokens: TokenPyramid) -> dict[str, float]:
    """`codes_k`, `entropy_bits_k` and `perplexity_k` of each scale k of some tokens."""
    return {
        f"{name}_{k}": float(value)
        for k in range(tokens.spec.num_scales)
        for name, value in batch_usage(tokens.scale(k)).items()
    }


class UsageWindow:
    """Counts every code of every scale between two reports.

    A step costs one addition a token; only a report reads the `(S, sum of codebook sizes)` counts.
    A checkpoint holds them, so a resumed run reports what an unbroken one does.
    """

    def __init__(self, spec: TokenSpec) -> None:
        self.spec = spec
        self._counts: Tensor | None = None

    @torch.no_grad()
    def add(self, tokens: TokenPyramid) -> None:
        spec, indices = self.spec, tokens.indices
        width = sum(spec.codebook_sizes)
        if self._counts is None:
            self._counts = torch.zeros(
                spec.num_scales * width, dtype=torch.int32, device=indices.device
            )
        sizes = torch.tensor((0, *spec.codebook_sizes[:-1]), device=indices.device)
        lengths = torch.tensor(spec.scale_lengths, device=indices.device)
        scale = torch.arange(spec.num_scales, device=indices.device).repeat_interleave(
            lengths, output_size=spec.length
        )
        flat = (indices + sizes.cumsum(0) + (scale * width)[:, None]).flatten()
        self._counts.index_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))

    @torch.no_grad()
    def state_dict(self, reduce_mean: Collective, num_processes: int) -> dict[str, Any]:
        """Counts of all processes since the last report, which all ask for together."""
        if self._counts is None:
            return {}
        total = reduce_mean(self._counts.double()) * num_processes
        return {"counts": total.round().to(torch.int32)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Takes over counts; of several processes, one alone."""
        self._counts = state["counts"].to(device) if state else None

    @torch.no_grad()
    def report(self, reduce_mean: Collective) -> dict[str, Tensor]:
        """Share of codes used and entropy of each scale since the last report, then forgets them.

        Args:
            reduce_mean: averages a tensor over processes; all of them report together.

        Returns:
            `window_usage_k` in [0, 1] (mean over codebooks) and `window_entropy_bits_k`, which a
            window of N tokens bounds by log2 N. Empty when nothing was added.
        """
        if self._counts is None:
            return {}
        counts = reduce_mean(self._counts.double())
        self._counts = None
        found = {}
        for k, row in enumerate(counts.unflatten(0, (self.spec.num_scales, -1))):
            parts = row.split(self.spec.codebook_sizes)
            used = torch.stack([(part > 0).double().mean() for part in parts])
            found[f"window_usage_{k}"] = used.mean()
            found[f"window_entropy_bits_{k}"] = torch.stack([entropy_bits(p) for p in parts]).sum()
        return found

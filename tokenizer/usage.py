"""How many codes a tokenizer uses, and how evenly: of a batch, and over a window of training steps.

With G > 1 codebooks a token, entropies are summed over codebooks (bits of a token if they were
independent), numbers of codes too; perplexities are geometric means, as in `code_usage`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenizer.quantizers.base import Collective
from tokenizer.tokens import TokenPyramid, TokenSpec


@torch.no_grad()
def batch_usage(indices: Tensor) -> dict[str, Tensor]:
    """Scalars `codes`, `entropy_bits` and `perplexity` of one scale's indices (B, n_k, G).

    Reads nothing back from the device, and costs a sort of the tokens, whatever the codebook.
    """
    ordered = indices.flatten(0, 1).T.contiguous().sort(dim=-1).values  # (G, N)
    after = torch.searchsorted(ordered, ordered, right=True)
    # Each token with the number of tokens that share its code.
    counts = (after - torch.searchsorted(ordered, ordered)).float()
    entropy = -(counts / ordered.shape[-1]).log2().mean(dim=-1)  # (G,)
    return {
        "codes": (ordered.diff(dim=-1) > 0).sum() + len(ordered),
        "entropy_bits": entropy.sum(),
        "perplexity": entropy.mean().exp2(),
    }


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
    They belong to the log, not to the model: no checkpoint holds them, a resumed run starts anew.
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
            found[f"window_entropy_bits_{k}"] = torch.stack([_entropy_bits(p) for p in parts]).sum()
        return found


def _entropy_bits(counts: Tensor) -> Tensor:
    share = counts / counts.sum()
    return -torch.special.xlogy(share, share).sum() / math.log(2)

"""How the codes of a finished set of tokens are used, in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class CodeUsage:
    """How the codes of a set of tokens are used.

    Codes and entropies are sums over a token's codebooks, usage is the share of all their codes,
    perplexity the geometric mean. Entropy is the plug-in estimate, at most log2 of the tokens.
    """

    codes_used: int
    usage: float
    entropy_bits: float
    perplexity: float


def code_usage(indices: Tensor, codebook_sizes: Sequence[int]) -> CodeUsage:
    """Codes hit, entropy and perplexity of tokens `(..., G)`."""
    used, entropy = 0, 0.0
    for codebook in range(len(codebook_sizes)):
        _, counts = indices[..., codebook].unique(return_counts=True)
        frequency = counts.double() / counts.sum()
        used += len(counts)
        entropy -= float((frequency * frequency.log2()).sum())
    return CodeUsage(
        codes_used=used,
        usage=used / sum(codebook_sizes),
        entropy_bits=entropy,
        perplexity=2 ** (entropy / len(codebook_sizes)),
    )

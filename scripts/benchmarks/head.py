"""Time and memory of a head's loss, forward and backward with Z-loss, against full logits.

The reference is a linear layer over all 196,560 codes whose logits exist at once. Contenders take
turns within each round, and ratios are medians over rounds, so what disturbs the machine for a
while disturbs all of them.

Memory is what a call needs beyond what any way of computing the same gradients must hold: the
growth of the resident set at its peak, less the bytes of the gradients it leaves (of the weights,
576 MiB at width 768, and of the hidden states). Weights and hidden states are there before;
gradients are not, as after `zero_grad(set_to_none=True)`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lambda24.generator.heads.base import Head, TokenLoss, head_linear
from lambda24.generator.heads.build import HeadConfig, build_head
from lambda24.generator.heads.categorical import CategoricalHeadConfig
from lambda24.generator.heads.lattice import LatticeHeadConfig
from lambda24.scripts.benchmarks.timing import Clock, interleaved, median_ratio, peak_bytes_of
from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.tokens import TokenSpec

Z_LOSS = 1e-4
REFERENCE = "full logits"
CONTENDERS: dict[str, HeadConfig] = {
    "lattice": LatticeHeadConfig(),
    "categorical, in blocks": CategoricalHeadConfig(),
}


@dataclass(frozen=True)
class HeadTiming:
    """One head at one width.

    Args:
        milliseconds: median of 1,000 tokens.
        speed: median over rounds of the reference's time by this head's.
        extra_bytes: peak beyond weights, hidden states and the gradients of both; None where the
            system does not tell.
    """

    name: str
    width: int
    milliseconds: float
    speed: float
    extra_bytes: int | None

    def __str__(self) -> str:
        memory = "?" if self.extra_bytes is None else f"{self.extra_bytes / 2**20:.1f}"
        return (
            f"{self.name:24s} width {self.width:4d} {self.milliseconds:10.1f} ms / 1,000 tokens "
            f"{self.speed:8.2f} x {memory:>8s} MiB extra"
        )


class FullLogits(nn.Module):
    """The reference: the loss of a linear layer, its logits all at once."""

    def __init__(self, width: int, num_codes: int) -> None:
        super().__init__()
        self.linear = head_linear(width, num_codes)

    def loss(self, hidden: Tensor, tokens: Tensor) -> TokenLoss:
        """As `Head.loss`, of one codebook."""
        logits = self.linear(hidden)
        log_z = logits.logsumexp(-1)
        return TokenLoss(log_z - logits.gather(-1, tokens).squeeze(-1), log_z)


def time_heads(
    width: int, *, tokens: int, repeats: int, clock: Clock, num_codes: int = leech.NUM_CODES
) -> Iterator[HeadTiming]:
    """Times the reference and all contenders at one width.

    Args:
        tokens: of a call.
        repeats: rounds.
        num_codes: fewer than all leave the lattice out.
    """
    draws = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=draws).requires_grad_()
    chosen = torch.randint(num_codes, (tokens, 1), generator=draws)
    spec = TokenSpec((1,), (num_codes,), leech.DIM, 1)
    heads: dict[str, FullLogits | Head] = {REFERENCE: FullLogits(width, num_codes)}
    for name, config in CONTENDERS.items():
        if num_codes == leech.NUM_CODES or config.kind == "categorical":
            heads[name] = build_head(config, width, spec)
    runs: dict[str, Callable[[], None]] = {
        name: partial(_step, head, hidden, chosen) for name, head in heads.items()
    }
    for run in runs.values():
        run()
    seconds = interleaved(runs, repeats, clock)
    for name, run in runs.items():
        yield HeadTiming(
            name,
            width,
            1e6 * statistics.median(seconds[name]) / tokens,
            median_ratio(seconds[REFERENCE], seconds[name]),
            _extra_bytes(run, heads[name], hidden),
        )


def _step(head: FullLogits | Head, hidden: Tensor, tokens: Tensor) -> None:
    """Forward and backward; leaves gradients that replace earlier ones."""
    _forget(head, hidden)
    found = head.loss(hidden, tokens)
    (found.nll.mean() + Z_LOSS * found.log_z.square().mean()).backward()


def _forget(head: nn.Module, hidden: Tensor) -> None:
    head.zero_grad(set_to_none=True)
    hidden.grad = None


def _extra_bytes(run: Callable[[], None], head: nn.Module, hidden: Tensor) -> int | None:
    _forget(head, hidden)
    peak = peak_bytes_of(run)
    if peak is None:
        return None
    left = sum(x.grad.nbytes for x in (hidden, *head.parameters()) if x.grad is not None)
    _forget(head, hidden)
    return max(0, peak - left)

"""Revival: codes of a table that nothing chooses are moved onto latents.

The new places depend on the seed, the step and where a latent stands in the global batch, so that
two processes do what one does and a resumed run repeats them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lambda24.common.data.batches import hash_integers
from lambda24.tokenizer.quantizers.base import Quantizer

MAX_CANDIDATES = 4096
"""Latents of a step that are kept as new places, on each process and of all together."""


@dataclass(frozen=True)
class Candidates:
    """Rows `(N, D)` in the order of their random ranks `(N,)`, which rise."""

    rows: Tensor
    ranks: Tensor

    @classmethod
    def draw(cls, rows: Tensor, *, seed: int, step: Tensor, number: int, limit: int) -> Candidates:
        """The `limit` rows of lowest rank: a random sample, made of the samples of its parts.

        Args:
            step: scalar, optimizer steps so far.
            number: of this pass within the step.
        """
        is_split = dist.is_available() and dist.is_initialized()
        first = dist.get_rank() * len(rows) if is_split else 0
        places = torch.arange(first, first + len(rows), device=rows.device)
        return cls(rows, hash_integers(seed, number, step, places)).lowest(limit)

    def __len__(self) -> int:
        return len(self.rows)

    def lowest(self, limit: int) -> Candidates:
        ranks, order = self.ranks.sort()
        return Candidates(self.rows[order[:limit]], ranks[:limit])

    def merge(self, other: Candidates, limit: int) -> Candidates:
        rows = torch.cat([self.rows, other.rows])
        return Candidates(rows, torch.cat([self.ranks, other.ranks])).lowest(limit)

    def take(self, count: int, quantizer: Quantizer, limit: int) -> Tensor:
        """`count` rows among the `limit` lowest of all processes, each of which kept its own."""
        ranks = quantizer.gather(self.ranks)
        rows = Candidates(quantizer.gather(self.rows), ranks).lowest(limit).rows
        # Distinct as long as there are enough: two codes on one latent would share it.
        values, same = rows.unique(dim=0, return_inverse=True)
        places = torch.arange(len(rows), device=rows.device)
        first = places.new_full((len(values),), len(rows))
        first = first.scatter_reduce(0, same, places, "amin").sort().values
        return rows[first.repeat(math.ceil(count / len(first)))[:count]]


class Revival(nn.Module):
    """Averages the usage of each code and moves those of a table that fall below a threshold.

    Args:
        size: number of codes K.
        threshold: in units of uniform usage of one scale.
        decay: of the average usage, per optimizer step.
        seed: of the draw of new places.
    """

    def __init__(self, size: int, *, threshold: float, decay: float, seed: int) -> None:
        super().__init__()
        self.threshold = threshold
        self.decay = decay
        self.seed = seed
        self.register_buffer("usage", torch.ones(size))
        self.register_buffer("num_updates", torch.tensor(0))
        self.usage: Tensor
        self.num_updates: Tensor
        self._pending: _Pending | None = None

    @classmethod
    def of(cls, size: int, *, threshold: float | None, decay: float, seed: int) -> Revival | None:
        """None without a threshold."""
        if threshold is None:
            return None
        return cls(size, threshold=threshold, decay=decay, seed=seed)

    def observe(self, quantizer: Quantizer, z: Tensor, indices: Tensor) -> None:
        """Counts the choices `indices`, one for each row of `z (..., D)`, of a training pass."""
        if counts_towards_training(quantizer):
            self._add(z.detach().reshape(-1, z.shape[-1]), indices.flatten())

    @torch.no_grad()
    def _add(self, z: Tensor, indices: Tensor) -> None:
        # Every scale has the same weight, however many tokens: coarse codes are rare, not dead.
        counts = torch.bincount(indices, minlength=len(self.usage)) / len(indices)
        before = self._pending
        candidates = Candidates.draw(
            z,
            seed=self.seed,
            step=self.num_updates,
            number=0 if before is None else before.passes,
            limit=MAX_CANDIDATES,
        )
        if before is None:
            self._pending = _Pending(counts, candidates, 1)
        else:
            candidates = candidates.merge(before.candidates, MAX_CANDIDATES)
            self._pending = _Pending(before.counts + counts, candidates, before.passes + 1)

    @torch.no_grad()
    def apply_to(self, quantizer: Quantizer, table: Tensor) -> None:
        """Ends an optimizer step: updates the usage and moves the dead rows of `table (K, D)`."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        counts = quantizer.reduce_mean(pending.counts)
        self.usage.lerp_(counts / counts.sum() * len(counts), 1 - self.decay)
        dead = (self.usage < self.threshold / quantizer.passes_per_batch).nonzero().squeeze(1)
        self.num_updates += 1
        # Usage is the same on every process, so all of them take part in the collective or none.
        if len(dead):
            places = pending.candidates.take(len(dead), quantizer, MAX_CANDIDATES)
            table[dead] = places.to(table.dtype)
            self.usage[dead] = 1 / quantizer.passes_per_batch


@dataclass(frozen=True)
class _Pending:
    counts: Tensor  # (K,) shares of each pass, summed
    candidates: Candidates
    passes: int


def counts_towards_training(quantizer: Quantizer) -> bool:
    """A training pass with gradients, and not its recomputation.

    Checkpointing recomputes a forward inside the backward pass that asked for it.
    """
    inside_backward = bool(torch._C._current_graph_task_id() != -1)
    return quantizer.training and torch.is_grad_enabled() and not inside_backward

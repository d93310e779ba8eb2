"""KVCache: keys and values of the steps generated so far, preallocated for the whole pyramid.

The cache is passed to the generator's `forward`, which appends one whole step (a scale, or a phase
of one) a call; no module keeps a mode or a copy. What the labels do to the layers is kept beside,
as it is the same for all steps. `first(n)` is a view of the leading images, which lets the sampler
drop the unconditional half of a batch once guidance has ended.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Modulation:
    """What the classes do to the layers.

    Args:
        labels: (B,), whose modulation it is.
        condition: (B, W) class embeddings.
        layers: per layer the six vectors (B, 1, W), or what a block makes them from.
        head: scale and shift (B, 1, W) of the last norm.
    """

    labels: Tensor
    condition: Tensor
    layers: tuple[Tensor | tuple[Tensor, ...], ...]
    head: tuple[Tensor, Tensor]

    def is_of(self, labels: Tensor) -> bool:
        """Whether it is that of these labels."""
        return torch.equal(labels, self.labels)

    def first(self, batch_size: int) -> Modulation:
        """That of the leading images."""
        part = slice(batch_size)
        layers = tuple(
            layer[part] if isinstance(layer, Tensor) else tuple(vector[part] for vector in layer)
            for layer in self.layers
        )
        scale, shift = (vector[part] for vector in self.head)
        return Modulation(self.labels[part], self.condition[part], layers, (scale, shift))


class KVCache:
    """Slots for `num_layers` x (B, heads, L, head_dim) keys and values.

    Args:
        step_lengths: tokens of each step; their sums are the only lengths the cache can have.
        num_layers: attention layers.
        batch_size: images B.
        num_heads: heads a layer.
        head_dim: channels a head.
    """

    def __init__(
        self,
        step_lengths: Sequence[int],
        *,
        num_layers: int,
        batch_size: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.boundaries = (0, *itertools.accumulate(step_lengths))
        self.step = 0
        shape = (num_layers, batch_size, num_heads, self.boundaries[-1], head_dim)
        self.modulation: Modulation | None = None
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)

    @property
    def length(self) -> int:
        """Positions filled: a boundary of steps."""
        return self.boundaries[self.step]

    @property
    def num_steps(self) -> int:
        return len(self.boundaries) - 1

    @property
    def next_length(self) -> int:
        """Tokens of the next step.

        Raises:
            ValueError: all steps are cached.
        """
        if self.step >= self.num_steps:
            raise ValueError(f"the cache holds all {self.num_steps} steps, got one more")
        return self.boundaries[self.step + 1] - self.length

    @property
    def batch_size(self) -> int:
        return self._keys.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self._keys.dtype

    @property
    def num_bytes(self) -> int:
        """Memory of this view's slots."""
        return 2 * self._keys.numel() * self._keys.element_size()

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the next step's keys and values (B, heads, n, head_dim) of one layer.

        Returns:
            Views (B, heads, length + n, head_dim) of everything cached including these. The length
            itself moves in `advance`, once all layers have appended.

        Raises:
            ValueError: all steps are cached, or the shape is not the next step's.
        """
        start, stop = self.length, self.length + self.next_length
        slots = self._keys[layer, :, :, start:stop]
        if keys.shape != slots.shape or values.shape != slots.shape:
            raise ValueError(
                f"keys and values of step {self.step} must be {tuple(slots.shape)}, "
                f"got {tuple(keys.shape)} and {tuple(values.shape)}"
            )
        slots.copy_(keys)
        self._values[layer, :, :, start:stop].copy_(values)
        return self._keys[layer, :, :, :stop], self._values[layer, :, :, :stop]

    def advance(self) -> None:
        """Marks the next step as cached."""
        self.step += 1

    def reset(self) -> None:
        """Empties the cache for another batch of the same size; memory stays."""
        self.step = 0
        self.modulation = None

    def first(self, batch_size: int) -> KVCache:
        """The leading images' cache at its current length, sharing memory.

        Raises:
            ValueError: more images than the cache has.
        """
        if not 1 <= batch_size <= self.batch_size:
            raise ValueError(f"batch_size must be in [1, {self.batch_size}], got {batch_size}")
        view = KVCache.__new__(KVCache)
        view.boundaries, view.step = self.boundaries, self.step
        view.modulation = None if self.modulation is None else self.modulation.first(batch_size)
        view._keys = self._keys[:, :batch_size]
        view._values = self._values[:, :batch_size]
        return view

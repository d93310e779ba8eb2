"""What a run will need, before it starts: memory on one process, and how often it sees the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lambda24.common.data.dataset import load_dataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.training.loop import LoopConfig

FP32_BYTES = 4
# Numbers of state for each parameter. Dion's depends on shapes: see `state_size`.
OPTIMIZER_SLOTS = {"adamw": 2, "muon": 1}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a run on one process, which then holds everything and each whole micro-batch.

    Args:
        weights, gradients, optimizer, averages: by arithmetic, all fp32.
        activations: that autograd keeps of each image of a micro-batch.
    """

    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int

    def text(self, images: int) -> str:
        """One line for micro-batches of `images` images on the only process."""
        state = self.weights + self.gradients + self.optimizer + self.averages
        kept = images * self.activations
        return (
            f"memory of a process (estimate): weights {_mebibytes(self.weights)}, gradients "
            f"{_mebibytes(self.gradients)}, optimizer {_mebibytes(self.optimizer)}, averages "
            f"{_mebibytes(self.averages)}, activations {_mebibytes(kept)} "
            f"({self.activations / 2**20:,.2f} MiB an image); {_mebibytes(state + kept)} in all, "
            f"without temporary buffers; counts {images:,} images per process, assuming one process"
        )


def estimate_memory(
    trained: int,
    *,
    averaged: int,
    activations: int,
    optimizer: str | int = "adamw",
    frozen: int = 0,
) -> MemoryEstimate:
    """Estimate from numbers of parameters.

    Args:
        trained: parameters with a gradient.
        averaged: of those, the ones with a running average.
        activations: bytes that autograd keeps of one image; see `activations_per_image`.
        optimizer: its `kind`, or its numbers of state (`state_size` of `common.optim.build`).
        frozen: parameters without a gradient.
    """
    state = OPTIMIZER_SLOTS[optimizer] * trained if isinstance(optimizer, str) else optimizer
    return MemoryEstimate(
        weights=FP32_BYTES * (trained + frozen),
        gradients=FP32_BYTES * trained,
        optimizer=FP32_BYTES * state,
        averages=FP32_BYTES * averaged,
        activations=activations,
    )


def activations_per_image(forward: Callable[[int], object]) -> int:
    """Bytes that autograd keeps for each further image; `forward(n)` runs on n images.

    Counts what is saved for the backward pass, each storage once, for two images less for one: so
    weights and their bf16 copies drop out, as do buffers that live within an operator.
    """
    one, two = (saved_bytes(lambda n=n: forward(n)) for n in (1, 2))  # type: ignore[misc]
    return two - one


def saved_bytes(forward: Callable[[], object]) -> int:
    """Bytes of all storages that `forward` saves for the backward pass."""
    saved: list[Tensor] = []  # alive, as the address of a freed storage could be given out again

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    storages = (tensor.untyped_storage() for tensor in saved)
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def length_text(loop: LoopConfig) -> str:
    """Steps and images of a run."""
    total = loop.steps * loop.batch_size
    return f"{loop.steps:,} steps of {loop.batch_size} images, {total:,} in all"


def epochs_text(data: DataConfig, loop: LoopConfig) -> str:
    """How often a run sees the data, if that can be said without downloading it."""
    if data.streaming is not None:
        return "epochs: unknown, streamed images are not counted"
    if not is_local(data):
        return f"epochs: unknown, {data.path} is not on this machine"
    count = len(load_dataset(data, train=True))
    return f"{loop.steps * loop.batch_size / count:,.2f} epochs of {count:,} training images"


def is_local(data: DataConfig) -> bool:
    """Whether images can be looked at without a download."""
    return data.path == "digits" or Path(data.path).exists()


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"

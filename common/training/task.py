"""What `fit` trains: an algorithm with its modules, optimizers and averages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from lambda24.common.data.batches import Batch


class Task(ABC):
    """An algorithm that `fit` can train."""

    modules: dict[str, nn.Module]  # trainable modules by name, wrapped in place by `prepare`
    minimized: str | None = None  # the evaluation's scalar whose best weights a run keeps

    @abstractmethod
    def prepare(self, accelerator: Accelerator) -> None:
        """Wraps modules and optimizers; called once, before any state is loaded.

        Give `accelerator.prepare` each module together with its optimizer, as sharding replaces
        the parameters in both.
        """

    @abstractmethod
    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        """One optimizer step over the micro-batches; returns detached scalars.

        Calls backward (under `accelerator.no_sync` for all micro-batches but the last), clips with
        `clip_gradients`, sets the learning rate, steps, zeroes gradients and updates averages.
        The names returned are the same on all ranks.
        Batches are on the device; torch's global generator is already seeded for this step.
        """

    @abstractmethod
    def evaluate(self, step: int) -> dict[str, float]:
        """Scalars on held-out data, called on all ranks; `step` optimizer steps are done.

        Leaves the modules in training mode.
        """

    @abstractmethod
    def sample(self, step: int) -> Image.Image | None:
        """A picture for samples/, called on all ranks; None: this task has none.

        Leaves the modules in training mode.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Modules, optimizers, averages: tensors, which may be sharded, and plain numbers only.

        Called on all ranks; after it `EMA.average` is whole on the main process.
        """

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`; tensors come on the CPU, or sharded as `state_dict` has them."""

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """Writes model folders into the run folder; main process, after each checkpoint."""

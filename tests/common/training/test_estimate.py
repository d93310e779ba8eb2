"""Bytes by hand, and what a dry run can say of the data."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lambda24.common.data.dataset import load_dataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.training.estimate import (
    activations_per_image,
    epochs_text,
    estimate_memory,
    length_text,
    saved_bytes,
)
from lambda24.common.training.loop import LoopConfig


def test_memory_by_hand() -> None:
    memory = estimate_memory(2**20, averaged=2**19, activations=2**21, frozen=2**18)
    assert memory.text(4) == (
        "memory of a process (estimate): weights 5 MiB, gradients 4 MiB, optimizer 8 MiB, "
        "averages 2 MiB, activations 8 MiB (2.00 MiB an image); 27 MiB in all, "
        "without temporary buffers; counts 4 images per process, assuming one process"
    )
    assert estimate_memory(3, averaged=0, activations=0, optimizer="muon").optimizer == 12


def test_activations_by_hand() -> None:
    """Of a two-layer network: both layers' inputs and the result of ReLU, which is the second's."""
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    assert activations_per_image(lambda n: model(torch.zeros(n, 5))) == 4 * (5 + 7)
    weight = 4 * 7 * 3  # the second layer's is needed for the gradient of its input
    assert saved_bytes(lambda: model(torch.zeros(1, 5))) == 4 * (5 + 7) + weight


def test_epochs(tmp_path: Path) -> None:
    loop = LoopConfig(steps=100, batch_size=32)
    assert length_text(loop) == "100 steps of 32 images, 3,200 in all"
    count = len(load_dataset(DataConfig(), train=True))
    assert (
        epochs_text(DataConfig(), loop) == f"{3200 / count:.2f} epochs of {count:,} training images"
    )
    assert "is not on this machine" in epochs_text(DataConfig(path=str(tmp_path / "x")), loop)

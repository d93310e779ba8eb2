"""A small net and its training, for tests of Dion on one process and on several."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lambda24.common.optim.dion import Dion


class Net(nn.Module):
    """Tall, wide and square matrices, vectors and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.square, self.down = nn.Linear(6, 14), nn.Linear(14, 14), nn.Linear(14, 5)
        self.table = nn.Embedding(40, 6)

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.up(self.table(numbers))
        return self.down(self.square(x.sin()).sin())


def build(net: nn.Module, rank_fraction: float = 0.5) -> Dion:
    matrices = [p for name, p in net.named_parameters() if p.ndim == 2 and "table" not in name]
    others = [p for name, p in net.named_parameters() if p.ndim < 2 or "table" in name]
    groups = [{"params": matrices}, {"params": others, "algorithm": "lion", "lr": 1e-3}]
    return Dion(groups, rank_fraction=rank_fraction, seed=5)


def train(net: nn.Module, optimizer: Dion, steps: range, part: slice = slice(None)) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        # As many samples as make gradients of full rank: null directions amplify rounding.
        numbers = torch.randperm(40, generator=generator)
        target = torch.randn(40, 5, generator=generator)
        loss = (net(numbers[part]) - target[part]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

"""Dion on two processes, copied and sharded, against one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lambda24.common.optim.dion import Dion
from tests.common.optim.dion_net import Net, build, train


class Classes(nn.Module):
    """Layers that only ever see four inputs, as AdaLN's do: tall, wide, and of uneven shards."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        shapes = ((24, 70), (70, 24), (30, 31))
        self.layers = nn.ModuleList(nn.Linear(*shape, bias=False) for shape in shapes)
        self.tables = nn.ParameterList(
            nn.Parameter(torch.randn(4, inputs), requires_grad=False) for inputs, _ in shapes
        )

    def forward(self, numbers: Tensor) -> list[Tensor]:
        pairs = zip(self.layers, self.tables, strict=True)
        return [layer(table[numbers]) for layer, table in pairs]


def train_classes(net: nn.Module, optimizer: Dion, part: slice = slice(None)) -> None:
    numbers = torch.arange(40)[part] % 4
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        loss = torch.zeros(())
        for outputs in net(numbers):
            signals = torch.randn(40, outputs.shape[1], generator=generator)
            loss = loss + (outputs * signals[part]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def distributed_worker(rank: int, folder: str) -> None:
    """Trains the same net under DDP and under FSDP2, and saves both."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    half = slice(20 * rank, 20 * rank + 20)
    ddp = DistributedDataParallel(Net())
    train(ddp, build(ddp), range(5), half)
    torch.save(ddp.module.state_dict(), f"{folder}/ddp_{rank}.pt")

    for method in ("qr", "rcqr"):
        sharded = Net()
        for layer in (sharded.up, sharded.square, sharded.down):
            fully_shard(layer)
        fully_shard(sharded)
        optimizer = build(sharded)
        optimizer.orthonormalization = method  # type: ignore[assignment]
        train(sharded, optimizer, range(3), half)
        # A checkpoint of whole tensors, loaded into the sharded optimizer.
        state = whole(optimizer.state_dict())
        optimizer = build(sharded)
        optimizer.load_state_dict(copy.deepcopy(state))
        train(sharded, optimizer, range(3, 5), half)
        torch.save(whole(sharded.state_dict()), f"{folder}/fsdp_{method}_{rank}.pt")

    copied = DistributedDataParallel(Classes())
    train_classes(copied, Dion(copied.module.layers.parameters(), seed=5), half)
    torch.save(copied.module.state_dict(), f"{folder}/classes_ddp_{rank}.pt")
    parted = Classes()
    for layer in parted.layers:
        fully_shard(layer)
    train_classes(parted, Dion(parted.layers.parameters(), seed=5), half)
    torch.save(whole(parted.state_dict()), f"{folder}/classes_fsdp_{rank}.pt")
    dist.destroy_process_group()


def whole(state: Any) -> Any:
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    return state


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """DDP and FSDP2 (rows of 14 and 5 outputs: even and uneven shards) against one process."""
    single = Net()
    train(single, build(single), range(5))
    # Forked: a fresh process would take longer to import torch than to do this.
    mp.start_processes(distributed_worker, (str(tmp_path),), nprocs=2, start_method="fork")  # type: ignore[attr-defined]
    ddp = [torch.load(tmp_path / f"ddp_{rank}.pt", weights_only=True) for rank in range(2)]
    for name, value in single.state_dict().items():
        assert torch.equal(ddp[0][name], ddp[1][name])
        torch.testing.assert_close(ddp[0][name], value, rtol=0, atol=2e-6)
        for method in ("qr", "rcqr"):
            state = torch.load(tmp_path / f"fsdp_{method}_0.pt", weights_only=True)
            torch.testing.assert_close(state[name], value, rtol=0, atol=2e-5)

    classes = Classes()
    train_classes(classes, Dion(classes.layers.parameters(), seed=5))
    for name, value in classes.layers.state_dict(prefix="layers.").items():
        for kind in ("ddp", "fsdp"):
            state = torch.load(tmp_path / f"classes_{kind}_0.pt", weights_only=True)
            torch.testing.assert_close(state[name], value, rtol=0, atol=2e-5)

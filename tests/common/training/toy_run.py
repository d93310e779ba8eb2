"""A small task for `fit`, and the program that runs it in processes that are killed or paired."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from lambda24.common.config import config_class
from lambda24.common.data.batches import Batch, uniform_from_keys
from lambda24.common.data.dataset import ImageDataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.data.sources import Table
from lambda24.common.images import make_grid
from lambda24.common.optim.adamw import OptimizerConfig, build_optimizer
from lambda24.common.optim.ema import EMA
from lambda24.common.optim.gradients import gradient_step
from lambda24.common.training.fsdp import gather
from lambda24.common.training.loop import LoopConfig, Task, fit

ROOT = Path(__file__).parents[3]
SEED = 3


@config_class
class ToyConfig:
    loop: LoopConfig
    optimizer: OptimizerConfig
    data: DataConfig = DataConfig(image_size=8, flip=True)
    dropout: float = 0.2


class ToyTask(Task):
    """A classifier with dropout, an average, and noise from the samples' keys."""

    def __init__(self, config: ToyConfig) -> None:
        torch.manual_seed(0)
        self.config = config
        self.model: nn.Module = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
        self.ema = EMA(self.model, 0.9)
        self.optimizer: torch.optim.Optimizer = build_optimizer(self.model, config.optimizer)
        self.seen: list[list[int]] = []
        self.averaged = 0  # numbers of the average in this process's memory, after an update
        self.kill_at: int | None = None
        self.signal_at: tuple[int, int] | None = None  # step, number of the signal
        self.poison: tuple[int, str] | None = None
        self.held_out: list[float] = []  # what the evaluations after steps 1, 2, ... say

    def prepare(self, accelerator: Accelerator) -> None:
        self.accelerator, self.plain = accelerator, self.model
        self.model, self.optimizer = accelerator.prepare(self.model, self.optimizer)
        self.modules = {"model": self.model}

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.signal_at is not None and step == self.signal_at[0]:
            os.kill(os.getpid(), self.signal_at[1])
        if self.poison == (step, "gradient"):
            self.plain.get_parameter("4.bias").register_hook(lambda gradient: gradient / 0)

        def losses(batch: Batch) -> dict[str, Tensor]:
            self.seen.append(batch.keys.tolist())
            noise = uniform_from_keys(batch.keys, 1, (3, 8, 8))
            logits = self.model(batch.images + 0.1 * noise)
            loss = functional.cross_entropy(logits, batch.labels)
            return {"loss": loss * float("nan") if self.poison == (step, "loss") else loss}

        scalars = gradient_step(
            self.accelerator,
            self.model,
            self.optimizer,
            self.config.optimizer,
            batches,
            losses,
            step=step,
            total_steps=self.config.loop.steps,
        )
        self.ema.update(step)
        kept = [part.to_local() for part in self.ema._shards] + list(self.ema._average.parameters())
        self.averaged = sum(x.untyped_storage().nbytes() // x.itemsize for x in kept)
        return scalars

    def evaluate(self, step: int) -> dict[str, float]:
        weights = torch.cat([p.flatten() for p in self.ema.average.parameters()])
        scores = {"weight_norm": float(weights.norm())}
        return scores | ({"nll": self.held_out[step - 1]} if self.held_out else {})

    def sample(self, step: int) -> Image.Image | None:
        return make_grid(torch.rand(4, 3, 8, 8) * 2 - 1, columns=2)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.plain.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.plain.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])

    def save_pretrained(self, folder: Path) -> None:
        (folder / "toy").mkdir(exist_ok=True)
        torch.save(self.ema.average.state_dict(), folder / "toy" / "model.pt")

    def digest(self) -> str:
        """SHA-1 over every tensor and number of the state."""
        sha = hashlib.sha1()

        def add(value: Any) -> None:
            if isinstance(value, Tensor):
                sha.update(value.detach().cpu().contiguous().numpy().tobytes())
            elif isinstance(value, dict):
                for key in sorted(value, key=str):
                    sha.update(str(key).encode())
                    add(value[key])
            elif isinstance(value, (list, tuple)):
                for item in value:
                    add(item)
            else:
                sha.update(repr(value).encode())

        add(self.state_dict())
        return sha.hexdigest()


def toy_config(steps: int = 6, **options: Any) -> ToyConfig:
    dropout = options.pop("dropout", 0.2)
    schedule = options.pop("schedule", "cosine")
    optimizer = OptimizerConfig(lr=1e-3, warmup_steps=2, schedule=schedule, clip_norm=0.5)
    loop = LoopConfig(steps=steps, batch_size=options.pop("batch_size", 12), **options)
    return ToyConfig(loop=loop, optimizer=optimizer, dropout=dropout)


@dataclass(frozen=True)
class ToyTable(Table):
    def image(self, row: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(row).integers(0, 256, (8, 8, 3), np.uint8))


def toy_data(config: ToyConfig) -> ImageDataset:
    table = ToyTable(np.arange(32) % 10, tuple("0123456789"))
    return ImageDataset(table, np.arange(32), config.data, augment=True)


def train(config: ToyConfig, run: Path, **options: Any) -> tuple[ToyTask, dict[str, float]]:
    num_workers, profile = options.pop("num_workers", 0), options.pop("profile", None)
    data = options.pop("data", None) or toy_data(config)
    task = ToyTask(config)
    for name, value in options.items():
        setattr(task, name, value)
    result = fit(
        task,
        data,
        loop=config.loop,
        run=run,
        config=config,
        seed=SEED,
        num_workers=num_workers,
        profile=profile,
    )
    return task, result


def records(run: Path, *keys: str) -> list[list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line[key] for key in keys] for line in lines if all(key in line for key in keys)]


def program(arguments: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
    """Starts `main` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, __file__, json.dumps(arguments)],
        # Sums of floats depend on the number of threads, so this process and that one share it.
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_processes(
    count: int, work: Callable[..., None], *arguments: Any, **environment: str
) -> None:
    """Runs `work(rank, *arguments)` in `count` forks, which need not import anything anew."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment |= {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true",
    }
    mp.start_processes(_process, (work, arguments, environment), count, start_method="fork")  # type: ignore[attr-defined]


def _process(
    rank: int, work: Callable[..., None], arguments: tuple[Any, ...], environment: dict[str, str]
) -> None:
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)  # those of the parent were not forked
    AcceleratorState._reset_state(reset_partial_state=True)
    work(rank, *arguments)
    if dist.is_initialized():
        dist.destroy_process_group()


def two_processes(arguments: dict[str, Any], folder: Path, **environment: str) -> list[Any]:
    """What both ranks of `main` saved."""
    in_processes(2, _rank_of_main, arguments, folder, **environment)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _rank_of_main(rank: int, arguments: dict[str, Any], folder: Path) -> None:
    main({"options": {}, **arguments, "out": str(folder / f"{rank}.pt")})


def main(arguments: dict[str, Any]) -> None:
    """Trains, as often as there are configs, each going on where the last one ended."""
    for options in arguments["configs"]:
        task, _ = train(toy_config(**options), Path(arguments["run"]), **arguments["options"])
    torch.save(
        {
            "state": gather(task.state_dict()),
            "seen": task.seen,
            "sharded": isinstance(next(task.model.parameters()), DTensor),
            "averaged": task.averaged,
            "gradients_in_buckets": getattr(task.model, "gradient_as_bucket_view", False),
        },
        arguments["out"],
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

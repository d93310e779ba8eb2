"""`fit` on a small task; also a program, to be killed and to run on two processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from common.batches import Batch, uniform_from_keys
from common.config import config_class
from common.data import DataConfig, ImageDataset
from common.images import make_grid
from common.loop import LoopConfig, Task, fit
from common.optim import EMA, OptimizerConfig, build_optimizer, gradient_step
from common.sources import Table

ROOT = Path(__file__).parents[2]
SEED = 3


@config_class
class ToyConfig:
    loop: LoopConfig
    optimizer: OptimizerConfig = OptimizerConfig(
        lr=1e-3, warmup_steps=2, schedule="cosine", clip_norm=0.5
    )
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
        self.kill_at: int | None = None
        self.poison: tuple[int, str] | None = None

    def prepare(self, accelerator: Accelerator) -> None:
        self.accelerator, self.plain = accelerator, self.model
        self.model, self.optimizer = accelerator.prepare(self.model, self.optimizer)
        self.modules = {"model": self.model}

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
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
        return scalars

    def evaluate(self, step: int) -> dict[str, float]:
        weights = torch.cat([p.flatten() for p in self.ema.average.parameters()])
        return {"weight_norm": float(weights.norm())}

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
        torch.save(self.plain.state_dict(), folder / "toy" / "model.pt")

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
    loop = LoopConfig(steps=steps, batch_size=options.pop("batch_size", 12), **options)
    return ToyConfig(loop=loop, dropout=dropout)


@dataclass(frozen=True)
class ToyTable(Table):
    def image(self, row: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(row).integers(0, 256, (8, 8, 3), np.uint8))


def toy_data(config: ToyConfig) -> ImageDataset:
    table = ToyTable(np.arange(32) % 10, tuple("0123456789"))
    return ImageDataset(table, np.arange(32), config.data, augment=True)


def train(config: ToyConfig, run: Path, **options: Any) -> tuple[ToyTask, dict[str, float]]:
    num_workers = options.pop("num_workers", 0)
    task = ToyTask(config)
    for name, value in options.items():
        setattr(task, name, value)
    result = fit(
        task,
        toy_data(config),
        loop=config.loop,
        run=run,
        config=config,
        seed=SEED,
        num_workers=num_workers,
    )
    return task, result


def records(run: Path, *keys: str) -> list[list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line[key] for key in keys] for line in lines if all(key in line for key in keys)]


def program(arguments: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
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


def main(arguments: dict[str, Any]) -> None:
    config = toy_config(**arguments["config"])
    task, _ = train(config, Path(arguments["run"]), **arguments["options"])
    torch.save({"state": task.state_dict(), "seen": task.seen}, arguments["out"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[ToyTask, Path]:
    """An uninterrupted run of 6 steps: 72 positions, so two and a bit epochs of 32 images."""
    run = tmp_path_factory.mktemp("whole")
    task, _ = train(toy_config(log_every=2, save_every=3), run)
    return task, run


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in a process with two workers, killed in its fifth step."""
    run = tmp_path_factory.mktemp("killed")
    process = program(
        {
            "config": {"log_every": 2, "save_every": 3},
            "run": str(run),
            "out": str(run / "never.pt"),
            "options": {"kill_at": 4, "num_workers": 2},
        }
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_000003"]
    return run


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_run_resumes_bit_for_bit(
    whole: tuple[ToyTask, Path], killed: Path, tmp_path: Path, num_workers: int
) -> None:
    run = tmp_path / "resumed"
    shutil.copytree(killed, run)
    resumed, _ = train(toy_config(log_every=2, save_every=3), run, num_workers=num_workers)
    assert len(resumed.seen) == 3
    assert resumed.seen == whole[0].seen[3:]
    assert resumed.digest() == whole[0].digest()
    kept = records(run, "step", "loss", "gradient_norm")
    assert kept == records(whole[1], "step", "loss", "gradient_norm")
    assert [line[0] for line in kept] == [2, 4, 6]
    sample = "samples/step_000006.png"
    assert (run / sample).read_bytes() == (whole[1] / sample).read_bytes()


def test_digest_sees_the_seed_of_each_step(
    whole: tuple[ToyTask, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resume test would notice a wrong dropout mask."""
    monkeypatch.setattr("common.loop.hash_integer", lambda *values: 5)
    task, _ = train(toy_config(log_every=2, save_every=3), tmp_path / "other")
    assert task.seen == whole[0].seen
    assert task.digest() != whole[0].digest()


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    options = {"steps": 4, "dropout": 0.0, "accumulation": 2, "batch_size": 16}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = [
        program(
            {
                "config": options,
                "run": str(tmp_path / "two"),
                "out": str(tmp_path / f"{rank}.pt"),
                "options": {},
            },
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            ACCELERATE_USE_CPU="true",
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    one, _ = train(toy_config(**options), tmp_path / "one")
    assert one.seen == [a + b for a, b in zip(ranks[0]["seen"], ranks[1]["seen"], strict=True)]
    for name, value in one.plain.state_dict().items():
        assert torch.equal(ranks[0]["state"]["model"][name], ranks[1]["state"]["model"][name])
        torch.testing.assert_close(ranks[0]["state"]["model"][name], value, atol=1e-6, rtol=0)
    both = records(tmp_path / "one", "loss") + records(tmp_path / "two", "loss")
    assert both[0][0] == pytest.approx(both[1][0], abs=1e-6)


def test_accumulation_is_the_same_global_batch(tmp_path: Path) -> None:
    whole, _ = train(toy_config(steps=3, dropout=0.0), tmp_path / "1")
    parts, _ = train(toy_config(steps=3, dropout=0.0, accumulation=3), tmp_path / "3")
    joined = [list(chain(*parts.seen[i : i + 3])) for i in range(0, 9, 3)]
    assert joined == whole.seen
    for a, b in zip(whole.plain.parameters(), parts.plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_batch_size_must_divide(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"batch_size 12 must be .* 1 processes x .*accumulation 5"
    ):
        train(toy_config(accumulation=5), tmp_path)


@pytest.mark.parametrize(
    ("kind", "name"), [("loss", r"gradient of (module\.)?0\.weight"), ("gradient", "4.bias")]
)
def test_not_finite_stops_the_run(tmp_path: Path, kind: str, name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"step 4: .*{name}.*checkpoints/step_000003"):
        train(toy_config(save_every=3), tmp_path, poison=(4, kind))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000003"]
    assert "step 4: gradient of" in (tmp_path / "log.txt").read_text()


def test_not_finite_scalar_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = ToyTask.train_step
    monkeypatch.setattr(
        ToyTask,
        "train_step",
        lambda self, batches, n: {**step(self, batches, n), "entropy": torch.tensor(-torch.inf)},
    )
    with pytest.raises(RuntimeError, match=r"step 0: entropy is -inf; last good checkpoint: none"):
        train(toy_config(), tmp_path)


def test_finished_run_returns_its_result(tmp_path: Path) -> None:
    _, first = train(toy_config(steps=2), tmp_path)
    task, second = train(toy_config(steps=2), tmp_path)
    assert second == first
    assert set(first) == {"weight_norm", "seconds"}
    assert task.seen == []
    assert "already finished" in (tmp_path / "log.txt").read_text()


def test_longer_run_goes_on(tmp_path: Path) -> None:
    train(toy_config(steps=2), tmp_path)
    task, _ = train(toy_config(steps=5, log_every=1), tmp_path)
    assert len(task.seen) == 3
    assert [line[0] for line in records(tmp_path, "step", "loss")] == [2, 3, 4, 5]


def test_other_config_is_refused(tmp_path: Path) -> None:
    train(toy_config(steps=2), tmp_path)
    with pytest.raises(ValueError, match=r"dropout: the run has 0.2, got 0.5"):
        train(toy_config(steps=4, dropout=0.5), tmp_path)
    with pytest.raises(ValueError, match=r"loop.batch_size: the run has 12, got 8"):
        train(toy_config(steps=4, batch_size=8), tmp_path)


def test_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(toy_config(steps=2), tmp_path)
    monkeypatch.setattr(ImageDataset, "__len__", lambda self: 31)
    with pytest.raises(ValueError, match=r"started on 32 training images, got 31"):
        train(toy_config(steps=4), tmp_path)


def test_run_folder(tmp_path: Path) -> None:
    config = toy_config(steps=6, log_every=2, eval_every=3, save_every=2, sample_every=4)
    train(config, tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml",
        "metrics.jsonl",
        "log.txt",
        "toy/model.pt",
        "samples/step_000004.png",
        "samples/step_000006.png",
        "checkpoints/step_000004/state.pt",
        "checkpoints/step_000006/state.pt",
    }
    assert records(tmp_path, "step", "loss", "gradient_norm", "data_wait", "images_per_second")
    assert [line[0] for line in records(tmp_path, "step", "eval/weight_norm")] == [3, 6]


def test_logged_scalars_are_means_over_steps(tmp_path: Path) -> None:
    train(toy_config(steps=4, log_every=1), tmp_path / "each")
    train(toy_config(steps=4, log_every=4), tmp_path / "all")
    each = [line[0] for line in records(tmp_path / "each", "loss")]
    assert records(tmp_path / "all", "loss")[0][0] == pytest.approx(sum(each) / 4, rel=1e-6)


def test_loop_leaves_precision_free_between_runs(tmp_path: Path) -> None:
    full, _ = train(toy_config(steps=2, dropout=0.0), tmp_path / "fp32")
    half, _ = train(toy_config(steps=2, dropout=0.0, precision="bf16"), tmp_path / "bf16")
    again, _ = train(toy_config(steps=2, dropout=0.0), tmp_path / "again")
    assert again.digest() == full.digest() != half.digest()
    assert half.plain.get_parameter("0.weight").dtype == torch.float32
    assert "mixed precision bf16" in (tmp_path / "bf16" / "log.txt").read_text()


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(toy_config(steps=2, trackers=("tensorboard",)), tmp_path)
    assert list(tmp_path.rglob("events.out.tfevents.*"))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

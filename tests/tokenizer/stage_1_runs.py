"""Program of test_training_runs.py: one run undisturbed, killed five times, and on two processes.

`python stage_1_runs.py FOLDER` trains FOLDER/whole, FOLDER/killed and half of FOLDER/two. The
libraries are imported once; each run is a fork of this process.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from lambda24.common.config import from_dict
from lambda24.common.data.batches import Batch
from lambda24.common.data.dataset import load_dataset
from lambda24.common.training.loop import fit
from lambda24.tokenizer.settings import TokenizerTrainingConfig
from lambda24.tokenizer.task import TokenizerTask

STEPS, KILLS, HALF = 8, 5, 4

CONFIG: dict[str, Any] = {
    "run": "",
    "data": {"path": "digits", "image_size": 16, "max_images": 100},
    "model": {
        "image_size": 16,
        "pyramid": {"scales": [1, 2]},
        "autoencoder": {
            "kind": "cnn",
            "channels": [8, 16],
            "patch_size": 4,
            "encoder_blocks": 1,
            "decoder_blocks": 1,
            "groups": 4,
        },
        "quantizer": {"kind": "fsq", "levels": [5, 5, 5]},
    },
    "optimizer": {"lr": 1e-3, "warmup_steps": 3, "schedule": "cosine", "clip_norm": 1.0},
    "loop": {
        "steps": STEPS,
        "batch_size": 8,
        "accumulation": 2,
        "log_every": 1,
        "save_every": 2,
        "keep_checkpoints": 4,
    },
    "prefix_weight": 0.5,
    "scale_dropout": 0.3,
    "alignment": {"teacher": {"kind": "efficientnet_lite0", "size": 32, "stride": 16}},
    "adversary": {
        "discriminator": {"kind": "stylegan2", "channel_base": 64, "group_size": 2},
        "loss": {"kind": "non_saturating", "r1_interval": 3},
        "optimizer": {"lr": 1e-3, "betas": [0.5, 0.9], "schedule": "cosine", "clip_norm": 1.0},
        "adaptive": True,
        "start_step": 2,
        "augment": {"cutout": 0.3},
    },
    "num_eval_images": 8,
}


class StoppingTask(TokenizerTask):
    """Ends its process before the step `stop`."""

    stop = STEPS

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        if step == self.stop:
            os._exit(0)
        return super().train_step(batches, step)


def train(run: Path, stop: int) -> None:
    config = from_dict(TokenizerTrainingConfig, CONFIG)
    data = load_dataset(config.data, train=True)
    task = StoppingTask(config, load_dataset(config.data, train=False))
    task.stop = stop
    fit(task, data, loop=config.loop, run=run, config=config, seed=config.seed)


def fork(run: Path, *, stop: int = STEPS, **environment: str) -> int:
    """Starts `train` in a child; its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(environment)
        train(run, stop)
        status = 0
    finally:
        os._exit(status)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def last_step(run: Path) -> int:
    """Steps logged so far; a line may be half written."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return max((json.loads(line)["step"] for line in lines), default=0)
    except (FileNotFoundError, json.JSONDecodeError):
        return 0


def train_and_kill(run: Path) -> list[int]:
    """Kills the run at five random moments, each beyond the one before; exit codes."""
    draw = random.Random(0)
    codes = []
    for target in sorted(draw.sample(range(1, STEPS - 1), KILLS)):
        child = fork(run)
        while last_step(run) < target and os.waitpid(child, os.WNOHANG)[0] == 0:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        codes.append(wait(child))
    return [*codes, wait(fork(run))]


def train_on_two(run: Path) -> list[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common["ACCELERATE_USE_CPU"] = "true"
    children = [fork(run, stop=HALF, RANK=str(r), LOCAL_RANK=str(r), **common) for r in range(2)]
    return [wait(child) for child in children]


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    load_dataset(from_dict(TokenizerTrainingConfig, CONFIG).data, train=True)  # once, not per fork
    codes = {
        "whole": [wait(fork(folder / "whole"))],
        "killed": train_and_kill(folder / "killed"),
        "two": train_on_two(folder / "two"),
    }
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main()

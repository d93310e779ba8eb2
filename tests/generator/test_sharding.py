"""A generator under FSDP2: its blocks are units, and two processes learn what one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from lambda24.common.optim.build import DionConfig, build_any_optimizer
from lambda24.common.training.fsdp import gather
from lambda24.common.training.launch import build_accelerator
from lambda24.generator.config import GeneratorConfig
from lambda24.generator.heads import CategoricalHeadConfig
from lambda24.generator.model import NextScaleGenerator
from lambda24.generator.task import TeacherForcing
from lambda24.tokenizer import TokenSpec
from tests.common.training.toy_run import in_processes

SPEC = TokenSpec(scales=(1, 2), codebook_sizes=(20,), code_dim=3, latent_size=2)
CONFIG = GeneratorConfig(
    depth=2, width=16, num_heads=2, num_classes=3, head=CategoricalHeadConfig(), adaln_init=1.0
)


def build() -> tuple[TeacherForcing, torch.optim.Optimizer]:
    torch.manual_seed(0)
    generator = NextScaleGenerator(CONFIG, SPEC)
    optimizer = build_any_optimizer(generator, DionConfig(lr=0.01, orthonormalization="qr"))
    return TeacherForcing(generator, checkpoint_activations=True), optimizer


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, part: slice) -> None:
    for step in range(2):
        draw = torch.Generator().manual_seed(step)
        inputs = torch.randn(8, SPEC.length, SPEC.code_dim, generator=draw)
        tokens = torch.randint(20, (8, SPEC.length, 1), generator=draw)
        model(inputs[part], (torch.arange(8) % 4)[part], tokens[part]).nll.mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def work(rank: int, count: int, folder: Path) -> None:
    accelerator = build_accelerator(precision="fp32", trackers=(), run=folder)
    plain, optimizer = build()
    model, optimizer = accelerator.prepare(plain, optimizer)
    learn(model, optimizer, slice(8 // count * rank, 8 // count * (rank + 1)))
    units = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
    torch.save({"units": units, "state": gather(plain.state_dict())}, folder / f"{rank}.pt")


@pytest.mark.parametrize("count", [1, 2])
def test_each_block_is_a_unit(count: int, tmp_path: Path) -> None:
    in_processes(count, work, count, tmp_path, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    model, optimizer = build()
    learn(model, optimizer, slice(None))
    for rank in range(count):
        found: dict[str, Any] = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        blocks = ["", "generator.blocks.0", "generator.blocks.1"]
        assert found["units"] == (blocks if count == 2 else [])
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(found["state"][name], weight, rtol=0, atol=2e-5)

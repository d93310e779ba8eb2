"""FLOPs against PyTorch's own counter, and the table of presets."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lambda24.common.optim.adamw import OptimizerConfig
from lambda24.generator.config import GeneratorConfig
from lambda24.generator.cost import cost_text, gpu_hours, training_flops
from lambda24.generator.heads import CategoricalHeadConfig
from lambda24.generator.model import NextScaleGenerator
from lambda24.scripts.reports.presets import preset_table
from lambda24.tokenizer.tokens import TokenSpec

SPEC = TokenSpec(scales=(1, 2, 4), codebook_sizes=(50,), code_dim=24, latent_size=4)
CONFIG = GeneratorConfig(
    depth=2, width=64, num_heads=4, num_classes=10, head=CategoricalHeadConfig()
)


@pytest.mark.parametrize("adaln", ["shared", "per_block"])
def test_flops_are_those_of_a_counter(adaln: Literal["shared", "per_block"]) -> None:
    model = NextScaleGenerator(replace(CONFIG, adaln=adaln), SPEC)
    inputs = torch.zeros(1, SPEC.length, SPEC.code_dim)
    with FlopCounterMode(display=False) as counter:
        hidden = model(inputs, torch.zeros(1, dtype=torch.int64))
        model.head.logits(hidden).sum().backward()
    # The counter does not know the attention of CPUs: 2 products forward, 4 backward.
    allowed = 1 * 1 + 4 * 5 + 16 * 21
    attention = 2 * (2 + 4) * CONFIG.width * CONFIG.depth * allowed
    # The first position is the class: it has no input projection, and nobody needs the gradient of
    # its input.
    projection = 2 * 24 * 64 * (3 * SPEC.length - 2 * (SPEC.length - 1))
    assert training_flops(model) == counter.get_total_flops() + attention + projection


def test_hours_and_their_assumption_are_said() -> None:
    assert gpu_hours(3.6e18, 100) == pytest.approx(10)
    with torch.device("meta"):
        model = NextScaleGenerator(CONFIG, SPEC)
    text = cost_text(model, 10**9)
    assert "compute (estimate)" in text
    assert f"{training_flops(model) * 10**9:.2e} FLOPs in all" in text
    assert "at an assumed 150 TFLOP/s sustained" in text


def test_the_table_counts_images_as_a_gpu_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def count(*_: object, checkpoint_activations: bool, **how: bool) -> int:
        asked.append(how)
        return 2**28 if checkpoint_activations else 2**29

    monkeypatch.setattr(
        "lambda24.scripts.reports.presets.activation_bytes", count
    )  # test_plan.py tests it
    text = preset_table(["var-d16"], OptimizerConfig(), images=8, tflops=100)
    cells = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    assert asked == [{"bf16": True, "on_gpu": True}] * 2
    assert cells[:3] == ["var-d16", "310 M", "680"]
    assert cells[3] == "5.8"  # five numbers of four bytes a parameter
    assert cells[4:6] == ["4.0", "2.0"]
    # 6 x 206 M weights x 680 tokens, and 12 x 1024 x 16 for each of 302,610 pairs.
    assert float(cells[6]) == pytest.approx(0.90, abs=0.01)

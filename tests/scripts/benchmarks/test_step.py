"""The breakdown of a training step: parts add up, and fused attention is shared out."""

from __future__ import annotations

import time

import pytest
import torch

from lambda24.generator.config import GeneratorConfig
from lambda24.generator.heads import LatticeHeadConfig
from lambda24.generator.model import NextScaleGenerator
from lambda24.scripts.benchmarks import step as step_benchmark
from lambda24.scripts.benchmarks.step import PHASES, TRUNK, Step, benchmark_shape, time_step
from lambda24.tokenizer.tokens import TokenSpec

SPEC = TokenSpec(scales=(1, 2, 4), codebook_sizes=(196_560,), code_dim=24, latent_size=4)
CONFIG = GeneratorConfig(depth=2, width=32, num_heads=2, num_classes=10, head=LatticeHeadConfig())


def test_parts_add_up_and_a_step_is_the_usual_one() -> None:
    torch.manual_seed(0)
    generator = NextScaleGenerator(CONFIG, SPEC)
    step = Step(generator, 2, bf16=False)
    timing = time_step(step, repeats=1, clock=time.perf_counter)
    assert tuple(timing.phases) == PHASES
    trunk = sum(timing.phases[name] for name in TRUNK)
    assert sum(timing.trunk.values()) == pytest.approx(trunk)
    assert {"linear layers", "attention products", "attention softmax"} <= timing.trunk.keys()
    assert 0 < timing.products_share < 1
    # Gradients in phases are those of one backward pass.
    for run in list(step.phases().values())[:-1]:
        run()
    found = {n: p.grad for n, p in generator.named_parameters()}
    loss = generator.head.loss(generator(step.inputs, step.labels), step.tokens)
    objective = loss.nll.mean() + 1e-4 * loss.z_loss.mean()
    for name, parameter in generator.named_parameters():
        (expected,) = torch.autograd.grad(objective, parameter, retain_graph=True)
        torch.testing.assert_close(found[name], expected, msg=name)


@pytest.mark.parametrize("alone", [0.25, 3.0])
def test_fused_attention_is_products_for_as_long_as_these_take(alone: float) -> None:
    trunk = {step_benchmark.FUSED: 1.0, "attention softmax": 0.5}
    step_benchmark._split_fused(trunk, alone)
    products = min(alone, 1.0)
    assert trunk == {"attention products": products, "attention softmax": 1.5 - products}


def test_shapes_are_the_named_ones() -> None:
    with torch.device("meta"):
        model = benchmark_shape("var-d8", "categorical", depth=1)
    config = model.config
    assert (config.depth, config.width, config.num_heads) == (1, 512, 8)
    assert model.spec.length == 680
    assert sum(p.numel() for p in model.head.parameters()) == 4096 * (512 + 1)

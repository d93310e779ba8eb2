"""The reference sampler against `generate`, and the benchmark's lines."""

import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from lambda24.generator.heads import LatticeHeadConfig
from lambda24.sampling.generate import generate
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.ramps import LinearRamp
from lambda24.sampling.settings import SamplingConfig
from lambda24.scripts.benchmarks.sample import compare, matrix_products, report
from lambda24.scripts.benchmarks.straightforward import ReferenceSampler, output_layers
from lambda24.tokenizer.quantizers import LeechConfig
from tests.sampling.tiny_pipeline import tiny_pipeline

SAMPLING = SamplingConfig(guidance_scale=LinearRamp(start=1.0, end=2.5), top_k=40, top_p=0.9)
SHAPES: dict[str, dict[str, Any]] = {
    "infinity": {"adaln": "shared"},
    "var": {"position": "learned"},
    "plain": {"qk_norm": False},
    "lattice": {"quantizer": LeechConfig(), "head": LatticeHeadConfig()},
}


def make(name: str, **changes: Any) -> Pipeline:
    return tiny_pipeline((), SAMPLING, depth=2, num_classes=5, **{**SHAPES[name], **changes})


@pytest.mark.parametrize("name", SHAPES)
def test_generate_draws_the_tokens_of_the_reference(name: str):
    pipeline = make(name)
    parts = pipeline.generator, pipeline.image_tokenizer
    labels, seeds = torch.tensor([0, 3]), [5, 6]
    reference = ReferenceSampler(*parts, SAMPLING)(labels, seeds)
    generated = generate(*parts, labels, seeds, SAMPLING)
    assert torch.equal(reference.tokens.indices, generated.tokens.indices)
    torch.testing.assert_close(reference.images, generated.images)
    other = generate(*parts, labels, seeds, replace(SAMPLING, top_k=None, top_p=0.5))
    assert not torch.equal(other.tokens.indices, generated.tokens.indices)


def test_the_reference_refuses_heads_without_one_output_layer():
    mixture = make("lattice", head=LatticeHeadConfig(num_mixtures=2))
    with pytest.raises(ValueError, match="no logits of this LatticeHead"):
        output_layers(mixture.generator)


def test_products_are_those_of_a_run():
    pipeline = make("plain")
    width, length, lengths = 16, 21, (1, 4, 16)
    blocks = 2 * 12 * width * width * 2 * length  # guided: both halves of the batch, two layers
    attention = sum(2 * 2 * width * 2 * n * sum(lengths[: k + 1]) for k, n in enumerate(lengths))
    head, adaln = 75 * width * length, 2 * width * (2 * 6 * width + 2 * width)
    products = matrix_products(pipeline.generator, 1, SAMPLING, torch.float32)
    assert products.operations == 2 * (blocks + attention + head + adaln)


def test_report_has_a_line_per_sampler():
    pipeline = make("plain")
    lines = list(report(pipeline, 1, 1, time.perf_counter, compiled=False))
    assert "GFLOP an image" in lines[0]
    rows = {line[:16].strip(): line for line in lines[2:]}
    assert list(rows) == ["reference, fp32", "generate, fp32", "generate, bf16"]
    assert rows["generate, fp32"].endswith(" 100.00 %")


def test_the_reference_runs_only_where_its_logits_fit(monkeypatch: pytest.MonkeyPatch):
    pipeline = make("plain")
    monkeypatch.setattr("lambda24.scripts.benchmarks.sample.MOST_LOGITS", 10)
    timings = compare(pipeline, 2, repeats=1, clock=time.perf_counter, backend=None)
    assert [timing.sampler for timing in timings] == ["generate, fp32", "generate, bf16"]
    assert timings[0].times_reference is timings[0].equal_tokens is None
    assert timings[0].seconds > 0

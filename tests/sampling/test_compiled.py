"""Compiled blocks draw what eager ones draw."""

import copy

import pytest
import torch

from lambda24.sampling.compiled import is_compiled
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.settings import SamplingConfig
from tests.sampling.tiny_pipeline import tiny_pipeline


@pytest.fixture
def pipeline() -> Pipeline:
    return tiny_pipeline((), SamplingConfig(guidance_scale=1.5), num_classes=3, depth=2)


def test_compiled_blocks_draw_the_same(pipeline: Pipeline):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = copy.deepcopy(pipeline).compile(backend="eager")
    labels, seeds = [0, 1, 2, 1], [5, 6, 7, 8]
    before = [image.tobytes() for image in pipeline(labels, seeds, batch_size=2)]
    assert [image.tobytes() for image in compiled(labels, seeds, batch_size=2)] == before
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    # Before and after attention, for one token and for several: all layers and scales share them.
    assert 2 <= counters["stats"]["unique_graphs"] <= 6
    assert (pipeline.is_compiled, compiled.is_compiled) == (False, True)
    saved, expected = compiled.generator.state_dict(), pipeline.generator.state_dict()
    assert list(saved) == list(expected)


def test_the_generator_that_was_given_stays_eager(pipeline: Pipeline):
    given = pipeline.generator
    assert pipeline.compile(backend="eager") is pipeline
    assert pipeline.is_compiled
    assert not is_compiled(given)
    pairs = zip(given.parameters(), pipeline.generator.parameters(), strict=True)
    assert all(one is other for one, other in pairs)

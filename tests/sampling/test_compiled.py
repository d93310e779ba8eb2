"""Compiled blocks draw what eager ones draw."""

import copy

import pytest
import torch

from generator.heads import CategoricalHeadConfig
from generator.model import GeneratorConfig, NextScaleGenerator
from sampling.generate import SamplingConfig
from sampling.pipeline import Pipeline
from tokenizer.cnn import CNNConfig
from tokenizer.model import ImageTokenizer, TokenizerConfig
from tokenizer.multiscale import PyramidConfig
from tokenizer.quantizers import FSQConfig


@pytest.fixture
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    image_tokenizer = ImageTokenizer(
        TokenizerConfig(
            image_size=16,
            pyramid=PyramidConfig(scales=(1, 2, 4)),
            autoencoder=CNNConfig(channels=(8, 8), patch_size=2, groups=4),
            quantizer=FSQConfig(levels=(5, 3)),
        )
    )
    config = GeneratorConfig(
        depth=2, width=16, num_heads=2, num_classes=3, head=CategoricalHeadConfig()
    )
    generator = NextScaleGenerator(config, image_tokenizer.spec)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return Pipeline(image_tokenizer, generator, SamplingConfig(guidance_scale=1.5))


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

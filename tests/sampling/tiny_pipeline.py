"""A pipeline of 16-pixel images and three scales that computes in milliseconds."""

from dataclasses import replace
from typing import Any

import torch

from lambda24.generator.config import GeneratorConfig
from lambda24.generator.heads import CategoricalHeadConfig
from lambda24.generator.model import NextScaleGenerator
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.settings import SamplingConfig
from lambda24.tokenizer.autoencoders.cnn import CNNConfig
from lambda24.tokenizer.model import ImageTokenizer, TokenizerConfig
from lambda24.tokenizer.pyramid.multiscale import PyramidConfig
from lambda24.tokenizer.quantizers import FSQConfig, QuantizerConfig

CODES = FSQConfig(levels=(5, 5, 3))
SHAPE = GeneratorConfig(depth=1, width=16, num_heads=2, num_classes=4, head=CategoricalHeadConfig())


def tiny_pipeline(
    names: tuple[str, ...] = ("cat", "crane", "crane", "7"),
    sampling: SamplingConfig | None = None,
    *,
    scales: tuple[int, ...] = (1, 2, 4),
    quantizer: QuantizerConfig = CODES,
    **shape: Any,
) -> Pipeline:
    """Random weights; by default four classes, 75 codes, 21 tokens an image.

    Args:
        **shape: fields of `GeneratorConfig` that are not those of `SHAPE`.
    """
    torch.manual_seed(0)
    image_tokenizer = ImageTokenizer(
        TokenizerConfig(
            image_size=16,
            pyramid=PyramidConfig(scales=scales),
            autoencoder=CNNConfig(channels=(8, 8), patch_size=8 // scales[-1], groups=4),
            quantizer=quantizer,
        )
    )
    config = replace(SHAPE, **shape)
    generator = NextScaleGenerator(config, image_tokenizer.spec, names)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return Pipeline(image_tokenizer, generator, sampling)

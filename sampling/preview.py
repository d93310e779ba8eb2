"""The picture a stage-2 run draws of itself while it trains."""

from __future__ import annotations

import torch
from PIL import Image

from lambda24.common.images import make_grid
from lambda24.generator.model import NextScaleGenerator
from lambda24.sampling.generate import generate
from lambda24.sampling.settings import SamplingConfig
from lambda24.tokenizer.model import ImageTokenizer


def draw_classes(
    generator: NextScaleGenerator,
    image_tokenizer: ImageTokenizer,
    *,
    config: SamplingConfig | None = None,
    num_classes: int = 10,
    columns: int = 8,
) -> Image.Image:
    """One row of `columns` images per class, for the first `num_classes` classes; seeds from 0."""
    count = min(num_classes, generator.num_classes)
    labels = torch.arange(count).repeat_interleave(columns)
    seeds = torch.arange(columns).repeat(count)
    images = generate(generator, image_tokenizer, labels, seeds, config).images
    names = [generator.label_names[k] if generator.label_names else str(k) for k in range(count)]
    return make_grid(images, names, columns)

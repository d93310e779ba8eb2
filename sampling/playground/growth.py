"""Images while they grow, scale by scale, and one picture of several of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from lambda24.common.images import as_rgb, from_pil, from_uint8, make_grid, to_pil
from lambda24.sampling.editing import keeping, white_area
from lambda24.sampling.generate import Revise, generate_progressively
from lambda24.sampling.pipeline import GROUP, Pipeline
from lambda24.sampling.settings import SamplingConfig

EMPTY = (224, 224, 224)  # the grey of images still to come
SMALLEST = 256  # pixels that a single image is enlarged to


@dataclass(frozen=True)
class Growth:
    """One scale done.

    Args:
        images: all that are there so far, in the order of the seeds, the last ones still growing.
        growing: how many of them are.
        scale: the number, from 1, of the scale that they have reached.
    """

    images: list[Image.Image]
    growing: int
    scale: int


def grow(
    pipeline: Pipeline,
    label: int,
    seeds: Sequence[int],
    config: SamplingConfig,
    batch_size: int = GROUP,
    revise: Revise | None = None,
) -> Iterator[Growth]:
    """`pipeline([label] * len(seeds), seeds)`, bit for bit, yielded after every scale.

    Args:
        revise: see `sampling.generate.generate`; of `batch_size` images.

    Raises:
        ValueError: as `sampling.generate.generate`.
    """
    finished: list[Image.Image] = []
    labels = torch.full((batch_size,), label)
    for start in range(0, len(seeds), batch_size):
        chosen = list(seeds[start : start + batch_size])
        filled = chosen + chosen[-1:] * (batch_size - len(chosen))
        growing: list[Image.Image] = []
        steps = generate_progressively(
            pipeline.generator, pipeline.image_tokenizer, labels, filled, config, revise=revise
        )
        while True:
            with pipeline.autocast():  # for a step: whoever takes the next may be another thread
                step = next(steps, None)
            if step is None:
                break
            growing = to_pil(step.images[: len(chosen)])
            yield Growth(finished + growing, len(chosen), step.scale + 1)
        finished += growing


def grow_edit(
    pipeline: Pipeline,
    image: Image.Image,
    label: int,
    seeds: Sequence[int],
    config: SamplingConfig,
    *,
    keep_scales: int = 0,
    mask: Image.Image | None = None,
    batch_size: int = GROUP,
) -> Iterator[Growth]:
    """`pipeline.edit` of one image, once for each seed, bit for bit, yielded after every scale.

    Raises:
        ValueError: as `sampling.editing.edit`.
    """
    area = None if mask is None else white_area(mask)
    images = from_uint8(from_pil([as_rgb(image)] * batch_size))
    with pipeline.autocast():
        revise = keeping(pipeline.image_tokenizer, images, keep_scales=keep_scales, mask=area)
    return grow(pipeline, label, seeds, config, batch_size, revise)


def sheet(images: Sequence[Image.Image], total: int) -> Image.Image:
    """One picture of all `total` images, grey where one is still to come."""
    if total == 1:
        return enlarged(images[0], SMALLEST)
    blank = Image.new("RGB", images[0].size, EMPTY)
    tiles = [*images, *[blank] * (total - len(images))]
    columns = next(n for n in range(1, 9) if n * n >= total or n == 8)
    return make_grid(from_pil(tiles), columns=columns)


def enlarged(image: Image.Image, least: int) -> Image.Image:
    """Every pixel a square of them, so that a small image has at least `least` a side."""
    factor = max(1, -(-least // min(image.size)))
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)

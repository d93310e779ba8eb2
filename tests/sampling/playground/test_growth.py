"""Images while they grow."""

from typing import Any

import pytest
import torch
from PIL import Image

from lambda24.sampling.playground.growth import EMPTY, enlarged, grow, grow_edit, sheet
from lambda24.sampling.settings import SamplingConfig
from tests.sampling.tiny_pipeline import tiny_pipeline


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_images_grow_to_those_of_a_call(dtype: torch.dtype):
    pipeline, config = tiny_pipeline().to(dtype=dtype), SamplingConfig(guidance_scale=2.0)
    growths = list(grow(pipeline, 1, [5, 6, 7], config, batch_size=2))
    assert [growth.scale for growth in growths] == [1, 2, 3, 1, 2, 3]
    assert [len(growth.images) for growth in growths] == [2, 2, 2, 3, 3, 3]
    assert [growth.growing for growth in growths] == [2, 2, 2, 1, 1, 1]
    images = pipeline([1, 1, 1], [5, 6, 7], batch_size=2, config=config)
    assert [image.tobytes() for image in growths[-1].images] == [i.tobytes() for i in images]
    assert growths[0].images[0].tobytes() != images[0].tobytes()
    assert growths[3].images[0].tobytes() == images[0].tobytes()  # finished ones stay


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_edits_grow_to_those_of_a_call(dtype: torch.dtype):
    pipeline, config = tiny_pipeline().to(dtype=dtype), SamplingConfig(guidance_scale=2.0)
    image, mask = Image.effect_noise((16, 16), 90).convert("RGB"), Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    kept: dict[str, Any] = {"keep_scales": 1, "mask": mask}
    *_, last = grow_edit(pipeline, image, 1, [5, 6, 7], config, batch_size=2, **kept)
    images = pipeline.edit([image] * 3, [1] * 3, [5, 6, 7], batch_size=2, config=config, **kept)
    assert [grown.tobytes() for grown in last.images] == [i.tobytes() for i in images]
    drawn = pipeline([1] * 3, [5, 6, 7], batch_size=2, config=config)
    assert images[0].tobytes() != drawn[0].tobytes()


def test_images_to_come_are_grey():
    red = Image.new("RGB", (16, 16), "red")
    colours = sheet([red] * 2, 5).getcolors(1 << 20)
    counts = {colour: count for count, colour in colours or []}
    assert counts[255, 0, 0] == 2 * 64 * 64
    assert counts[EMPTY] == 3 * 64 * 64
    assert sheet([red], 1).size == (256, 256)


def test_small_images_are_enlarged_by_whole_pixels():
    image = Image.effect_noise((6, 6), 90).convert("RGB")
    large = enlarged(image, 20)
    assert large.size == (24, 24)
    assert large.resize((6, 6), Image.Resampling.NEAREST).tobytes() == image.tobytes()
    assert len(large.getcolors(1000) or []) == len(image.getcolors(1000) or [])
    assert enlarged(large, 20).size == (24, 24)

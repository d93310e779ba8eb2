"""Images while they grow."""

import pytest
import torch
from PIL import Image

from sampling.generate import SamplingConfig
from sampling.growth import EMPTY, enlarged, grow, sheet
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

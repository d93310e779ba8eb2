"""Images to bytes and back: the tokens of the tokenizer, whatever codes them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from lambda24.common.images import from_pil, from_uint8, to_pil
from lambda24.sampling.image_codec import ImageCodec
from lambda24.sampling.pipeline import Pipeline
from lambda24.tokenizer.codec.container import Mode, read_container, write_container
from lambda24.tokenizer.codec.tables import StaticTables
from tests.sampling.tiny_pipeline import tiny_pipeline

MODES: tuple[Mode, ...] = ("fixed", "static", "model")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    made = tiny_pipeline()
    for parameter in made.generator.head.parameters():  # far from uniform
        torch.nn.init.normal_(parameter, std=0.7)
    return made


@pytest.fixture(scope="module")
def codec(pipeline: Pipeline) -> ImageCodec:
    return make_codec(pipeline)


def make_codec(pipeline: Pipeline) -> ImageCodec:
    tokenizer = pipeline.image_tokenizer
    images = from_uint8(from_pil(pictures(tokenizer.config.image_size, 50, seed=9)))
    tables = StaticTables.fit([tokenizer.encode(images)], tokenizer.spec)
    return ImageCodec(tokenizer, pipeline.generator, tables)


def pictures(side: int, count: int, seed: int = 0) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    colors = random.integers(0, 256, (count, 1, 1, 3))
    noise = random.integers(-30, 30, (count, side, side, 3))
    return [Image.fromarray(p) for p in np.clip(colors + noise, 0, 255).astype(np.uint8)]


@pytest.mark.parametrize("mode", MODES)
def test_images_are_those_that_the_tokenizer_decodes(codec: ImageCodec, mode: Mode) -> None:
    tokenizer = codec.image_tokenizer
    images = pictures(codec.tile, 5)
    data = codec.encode(images, mode)
    expected = tokenizer.decode(tokenizer.encode(from_uint8(from_pil(images))))
    for found, wanted in zip(codec.decode(data), to_pil(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))


@pytest.mark.parametrize("mode", MODES)
def test_files_do_not_depend_on_the_batch(codec: ImageCodec, mode: Mode) -> None:
    images = pictures(codec.tile, 70)  # more than a group
    one = codec.encode(images, mode, batch_size=1)
    assert one == codec.encode(images, mode, batch_size=64)
    whole, header = codec.decode_tokens(one, batch_size=1)
    assert len(header.sizes) == 70
    for batch_size in (3, 64):
        assert torch.equal(codec.decode_tokens(one, batch_size=batch_size)[0], whole)


def test_model_files_are_as_long_as_the_model_says(codec: ImageCodec, pipeline: Pipeline) -> None:
    images, labels = pictures(codec.tile, 40), [i % 3 for i in range(40)]
    tokenizer, generator = pipeline.image_tokenizer, pipeline.generator
    tokens = tokenizer.encode(from_uint8(from_pil(images)))
    with torch.inference_mode():
        hidden = generator(tokenizer.next_scale_inputs(tokens), torch.tensor(labels))
        nats = float(generator.head.code_loss(hidden, tokens.indices).nll.double().sum())
    bits = nats / math.log(2) + 40 * math.log2(generator.num_classes + 1)
    _, payload = read_container(codec.encode(images, "model", labels=labels))
    assert 8 * len(payload) == pytest.approx(bits, rel=2e-3, abs=32)


def test_a_guessed_class_takes_the_fewest_bits(codec: ImageCodec, pipeline: Pipeline) -> None:
    (image,) = pictures(codec.tile, 1, seed=4)
    lengths = [
        len(codec.encode([image] * 20, "model", labels=[label] * 20))
        for label in range(pipeline.generator.num_classes + 1)
    ]
    assert len(set(lengths)) > 1
    assert len(codec.encode([image] * 20, "model", labels="guess")) == min(lengths)
    assert len(codec.encode([image] * 20, "model")) == lengths[-1]


@pytest.mark.parametrize("mode", MODES)
def test_any_size(codec: ImageCodec, mode: Mode) -> None:
    """Beside one another in one file; a single tile where the image fits one."""
    tile = codec.tile
    random = np.random.default_rng(0)
    sizes = [(tile, tile), (1, 1), (3 * tile + 1, tile - 1), (tile + 1, 2 * tile)]
    images = [Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]
    found = codec.decode(codec.encode(images, mode))
    assert [image.size for image in found] == sizes
    alone = codec.decode(codec.encode(images[2:3], mode))
    np.testing.assert_array_equal(np.asarray(found[2]), np.asarray(alone[0]))


def test_every_prefix_of_scales_is_an_image(codec: ImageCodec) -> None:
    images = pictures(codec.tile, 3)
    tokenizer = codec.image_tokenizer
    prefixes = tokenizer.decode_prefixes(tokenizer.encode(from_uint8(from_pil(images))))
    data = codec.encode(images, "static")
    for count, expected in enumerate(prefixes, start=1):
        found = codec.decode(data, num_scales=count)
        for image, wanted in zip(found, to_pil(expected), strict=True):
            np.testing.assert_array_equal(np.asarray(image), np.asarray(wanted))
    with pytest.raises(ValueError, match=r"num_scales must be in \[1, \d\], got 0"):
        codec.decode(data, num_scales=0)


@pytest.mark.parametrize("mode", MODES)
def test_other_models_are_refused(codec: ImageCodec, mode: Mode) -> None:
    torch.manual_seed(1)
    other = make_codec(tiny_pipeline())
    with torch.no_grad():
        next(iter(other.image_tokenizer.parameters())).add_(1)
    with pytest.raises(ValueError, match=r"coded with other models: their digest is \w+, that of"):
        other.decode(codec.encode(pictures(codec.tile, 1), mode))


@pytest.mark.parametrize("mode", MODES)
def test_wrong_tokens_are_never_an_image(codec: ImageCodec, mode: Mode) -> None:
    """As if this machine computed otherwise: the file is whole, its tokens are not those coded."""
    header, payload = read_container(codec.encode(pictures(codec.tile, 2), mode))
    changed = bytearray(payload)
    changed[len(changed) // 2] ^= 0x10
    with pytest.raises(ValueError, match=r"decoded to other tokens|damaged|are no \d+ tokens"):
        codec.decode(write_container(header, bytes(changed)))


def test_what_a_mode_needs(codec: ImageCodec, pipeline: Pipeline) -> None:
    alone, images = ImageCodec(pipeline.image_tokenizer), pictures(codec.tile, 1)
    with pytest.raises(ValueError, match="mode 'model' needs a generator"):
        alone.encode(images, "model")
    with pytest.raises(ValueError, match="mode 'static' needs tables"):
        alone.decode(codec.encode(images, "static"))
    with pytest.raises(ValueError, match="images must not be empty"):
        codec.encode([], "fixed")
    with pytest.raises(ValueError, match="got 1 images but 2 labels"):
        codec.encode(images, "model", labels=[0, 1])
    with pytest.raises(ValueError, match=r"labels must be in \[0, \d+\], got \[-1, -1\]"):
        codec.encode(images, "model", labels=[-1])

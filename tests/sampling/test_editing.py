"""Editing keeps what it is told to keep and draws the rest."""

import pytest
import torch
from torch import Tensor

from lambda24.generator.model import NextScaleGenerator
from lambda24.sampling.editing import edit, kept_tokens
from lambda24.sampling.generate import generate
from lambda24.sampling.settings import SamplingConfig
from lambda24.tokenizer.model import ImageTokenizer
from lambda24.tokenizer.tokens import TokenSpec
from tests.sampling.tiny_pipeline import tiny_pipeline

Models = tuple[NextScaleGenerator, ImageTokenizer]
SPEC = TokenSpec(scales=(1, 2, 4), codebook_sizes=(75,), code_dim=3, latent_size=4)
LABELS, SEEDS = torch.tensor([0, 1, 2]), [4, 5, 6]


@pytest.fixture(scope="module")
def models() -> Models:
    pipeline = tiny_pipeline((), num_classes=3)
    return pipeline.generator, pipeline.image_tokenizer


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def right_half() -> Tensor:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:, 8:] = True
    return mask


def test_keeping_all_is_a_reconstruction(models: Models, images: Tensor):
    tokens = models[1].encode(images)
    for kept in ({"keep_scales": 3}, {"mask": torch.zeros(16, 16, dtype=torch.bool)}):
        edited = edit(*models, images, LABELS, SEEDS, **kept)
        assert torch.equal(edited.tokens.indices, tokens.indices)
        assert torch.equal(edited.images, models[1].decode(tokens))


def test_keeping_nothing_is_generation(models: Models, images: Tensor):
    config = SamplingConfig(guidance_scale=2.0)
    drawn = generate(*models, LABELS, SEEDS, config).tokens.indices
    assert torch.equal(edit(*models, images, LABELS, SEEDS, config).tokens.indices, drawn)


def test_first_scales_stay_and_the_class_changes_the_rest(models: Models, images: Tensor):
    own = models[1].encode(images).indices
    one = edit(*models, images, LABELS, SEEDS, keep_scales=2).tokens.indices
    two = edit(*models, images, LABELS.flip(0), SEEDS, keep_scales=2).tokens.indices
    assert torch.equal(one[:, :5], own[:, :5])
    assert torch.equal(two[:, :5], own[:, :5])
    assert not torch.equal(one[0, 5:], two[0, 5:])
    assert torch.equal(one[1], two[1])  # the label that stayed


def test_kept_cells_follow_the_image_and_the_others_the_seed(models: Models, images: Tensor):
    mask = right_half()
    one = edit(*models, images, LABELS, SEEDS, mask=mask).tokens
    two = edit(*models, images, LABELS, [7, 8, 9], mask=mask).tokens
    drawn = generate(*models, LABELS, SEEDS).tokens
    assert torch.equal(one.scale(0), drawn.scale(0))  # half of the only cell: drawn
    left = torch.tensor([True, True, False, False]).repeat(4)
    assert not torch.equal(one.scale(2)[:, ~left], two.scale(2)[:, ~left])
    # Kept tokens are the image's own given what was drawn before them.
    pyramid, target = models[1].pyramid, models[1].normalized_latent(images)
    for tokens in (one, two):
        for k, state in zip(range(3), pyramid.states(tokens), strict=False):
            own = pyramid.encode_next(target, state)
            kept = kept_tokens(SPEC, 0, mask, (3, 16, 16))[:, SPEC.scale_slice(k)]
            assert torch.equal(tokens.scale(k)[kept], own[kept])


def test_which_tokens_are_kept():
    mask = right_half()
    expected = [False, *[True, False] * 2, *[True, True, False, False] * 4]
    assert kept_tokens(SPEC, 0, mask, (2, 16, 16)).tolist() == [expected] * 2
    assert kept_tokens(SPEC, 1, mask, (1, 16, 16))[0].tolist() == [True, *expected[1:]]
    mask[:, 8] = False  # one column less: most of the image is kept
    assert kept_tokens(SPEC, 0, mask, (1, 16, 16))[0, 0]
    mask[:, 8:10] = False  # half of the third column of cells
    assert not kept_tokens(SPEC, 0, mask, (1, 16, 16))[0, 5 + 2]
    mask[0, 10] = False
    assert kept_tokens(SPEC, 0, mask, (1, 16, 16))[0, 5 + 2]


def test_bad_calls(models: Models, images: Tensor):
    with pytest.raises(ValueError, match=r"keep_scales must be in \[0, 3\], got 4"):
        edit(*models, images, LABELS, SEEDS, keep_scales=4)
    with pytest.raises(ValueError, match=r"mask must be bool .*torch.bool \(8, 8\)"):
        edit(*models, images, LABELS, SEEDS, mask=torch.zeros(8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be bool .*float32"):
        edit(*models, images, LABELS, SEEDS, mask=torch.zeros(16, 16))
    with pytest.raises(ValueError, match="3 labels but 2 images"):
        edit(*models, images[:2], LABELS, SEEDS)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 16, 16\)"):
        edit(*models, images[:, :, :8], LABELS, SEEDS)

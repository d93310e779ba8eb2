"""Errors in the token history: where, how many, of what kind, and what the targets become."""

from dataclasses import replace

import pytest
import torch

from lambda24.common.config import from_dict
from lambda24.common.data.batches import Batch
from lambda24.generator.self_correction import SelfCorrection, SelfCorrectionConfig, flip_bits
from lambda24.tokenizer import ImageTokenizer, TokenizerConfig
from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.lattices.neighbors import NUM_TRIES, draw_neighbors


def batch(count: int = 40) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = 2 * torch.rand(count, 3, 16, 16, generator=generator) - 1
    return Batch(images, torch.zeros(count).long(), torch.arange(count))


def test_neighbours_are_uniform_among_the_4600() -> None:
    count = 9_200
    generator = torch.Generator().manual_seed(1)
    uniforms = torch.rand(count, NUM_TRIES + 1, generator=generator)
    indices = torch.full((count,), 150_000)
    drawn = torch.bincount(draw_neighbors(indices, uniforms), minlength=leech.NUM_CODES)
    drawn = drawn[leech.neighbors(150_000)]
    assert drawn.sum() == count  # nothing but neighbours
    chi_square = float(((drawn - 2) ** 2 / 2).sum())
    assert abs(chi_square - 4599) < 5 * (2 * 4599) ** 0.5
    few = torch.full((2, NUM_TRIES + 1), 0.5)  # every try the same code: falls back on the table
    codes = torch.tensor([0, 196_000])
    products = (
        leech.codebook(torch.int64)[codes] * leech.codebook(torch.int64)[draw_neighbors(codes, few)]
    )
    assert products.sum(1).tolist() == [16, 16]
    with pytest.raises(ValueError, match=r"uniforms must be \(2, 97\)"):
        draw_neighbors(codes, few[:, :3])


def test_history_errs_and_targets_answer(image_tokenizer: ImageTokenizer) -> None:
    config = SelfCorrectionConfig(probability=(0.0, 0.5, 1.0))
    targets, history = SelfCorrection(config, image_tokenizer).encode(batch())
    clean = image_tokenizer.encode(batch().images)
    assert torch.equal(history.scale(0), targets.scale(0))
    assert torch.equal(targets.scale(1), clean.scale(1))  # scale 0 had no errors
    changed = (history.scale(1) != targets.scale(1)).float().mean()
    assert 0.35 < changed < 0.65  # 160 draws
    codes = leech.codebook(torch.int64)
    for scale in (1, 2):
        wrong = history.scale(scale) != targets.scale(scale)
        products = codes[history.scale(scale)[wrong]] * codes[targets.scale(scale)[wrong]]
        assert (products.sum(1) == 16).all()
    assert (history.scale(2) != targets.scale(2)).all()
    # The last scale's targets quantize what the wrong tokens left.
    assert (targets.scale(2) != clean.scale(2)).any()
    state = image_tokenizer.initial_state(40)
    for scale in range(2):
        state = image_tokenizer.accumulate(state, history.scale(scale))
    pyramid = image_tokenizer.pyramid
    latent = pyramid.normalize(image_tokenizer.encoder(batch().images))
    residual = (latent - state.latent).flatten(2).transpose(1, 2) / pyramid.gain(2)
    assert torch.equal(pyramid.quantizer.encode(residual), targets.scale(2))


def test_errors_depend_on_the_key_alone(image_tokenizer: ImageTokenizer) -> None:
    correction = SelfCorrection(SelfCorrectionConfig(probability=0.3), image_tokenizer)
    whole = correction.encode(batch())[1].indices
    part = Batch(batch().images[10:20], batch().labels[10:20], batch().keys[10:20])
    assert torch.equal(correction.encode(part)[1].indices, whole[10:20])
    other = replace(batch(), keys=batch().keys + 1000)
    assert not torch.equal(correction.encode(other)[1].indices, whole)


def test_binary_tokens_flip_one_bit() -> None:
    tokens = torch.tensor([[5, 3]]).expand(7000, 2)
    uniforms = torch.rand(7000, generator=torch.Generator().manual_seed(0))
    flipped = flip_bits(tokens, uniforms, (16, 8))
    difference = tokens ^ flipped
    ones = (difference[:, 0] > 0).int() + (difference[:, 1] > 0).int()
    assert (ones == 1).all()
    first, second = (torch.bincount(column, minlength=9) for column in difference.unbind(1))
    counts = [first[1], first[2], first[4], first[8], second[1], second[2], second[4]]
    assert all(850 < count < 1150 for count in counts)


def test_what_has_no_neighbours_is_refused(image_tokenizer: ImageTokenizer) -> None:
    with pytest.raises(ValueError, match="must be one number or 3, one a scale, got 2"):
        SelfCorrection(SelfCorrectionConfig(probability=(0.1, 0.1)), image_tokenizer)
    data = image_tokenizer.config_dict() | {"quantizer": {"kind": "vq", "dim": 8}}
    other = ImageTokenizer(from_dict(TokenizerConfig, data))
    with pytest.raises(ValueError, match="nearest tokens of leech, lfq and bsq, not of 'vq'"):
        SelfCorrection(SelfCorrectionConfig(), other)

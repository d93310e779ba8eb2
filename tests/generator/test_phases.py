"""Phases: every token once, each sees what is drawn before it and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lambda24.common.draws import inverse_cdf
from lambda24.generator.config import GeneratorConfig
from lambda24.generator.model import NextScaleGenerator
from lambda24.generator.phases import (
    WINDOW,
    drawing_steps,
    flat_positions,
    input_dim,
    place_step,
    step_ids,
    step_inputs,
    teacher_forcing_inputs,
)
from lambda24.sampling.generate import generate
from lambda24.sampling.logits import top_k
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.seeds import SeededUniforms
from lambda24.sampling.settings import SamplingConfig
from lambda24.tokenizer import ImageTokenizer, TokenPyramid, TokenSpec
from tests.sampling.tiny_pipeline import SHAPE, tiny_pipeline

SPEC = TokenSpec(scales=(1, 2, 5), codebook_sizes=(75,), code_dim=3, latent_size=5)
PHASES = (1, 2, 4)


def with_phases(phases: tuple[int, ...], **shape: Any) -> Pipeline:
    return tiny_pipeline(phases=phases, **shape)


def random_tokens(tokenizer: ImageTokenizer, count: int = 3) -> TokenPyramid:
    torch.manual_seed(0)
    size = tokenizer.spec.codebook_sizes[0]
    return TokenPyramid(torch.randint(size, (count, tokenizer.spec.length, 1)), tokenizer.spec)


def test_steps_are_all_positions_once() -> None:
    steps = drawing_steps(SPEC, PHASES)
    assert [(step.scale, step.phase) for step in steps] == [
        *[(0, 0), (1, 0), (1, 1)],
        *[(2, phase) for phase in range(4)],
    ]
    places = torch.cat([flat_positions(SPEC, step) for step in steps])
    assert places.sort().values.tolist() == list(range(30))
    assert step_ids(SPEC, PHASES)[places].tolist() == sorted(step_ids(SPEC, PHASES).tolist())
    assert steps[1].positions == (0, 3)  # the diagonal of 2 x 2
    assert steps[3].positions == tuple(5 * y + x for y in (0, 2, 4) for x in (0, 2, 4))
    assert steps[4].positions == tuple(5 * y + x for y in (1, 3) for x in (1, 3))


def test_without_phases_a_step_is_a_scale() -> None:
    assert [step.positions for step in drawing_steps(SPEC, ())] == [
        tuple(range(n)) for n in (1, 4, 25)
    ]
    assert drawing_steps(SPEC, ()) == drawing_steps(SPEC, (1, 1, 1))
    assert input_dim(SPEC, ()) == 3
    assert input_dim(SPEC, PHASES) == 3 + 3 * WINDOW**2


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((1, 2), "one entry per scale"),
        ((1, 2, 3), "scale 2 must be 1, or 2 or 4"),
        ((2, 1, 1), "scale 0 .* not of the first"),
    ],
)
def test_phases_that_are_none(phases: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NextScaleGenerator(replace(SHAPE, phases=phases), SPEC)


def test_a_token_sees_the_codes_drawn_around_it() -> None:
    """Each input by definition: a loop over the window, earlier phases only."""
    pipeline = with_phases((1, 2, 4))
    tokenizer = pipeline.image_tokenizer
    tokens, spec = random_tokens(tokenizer), tokenizer.spec
    inputs = teacher_forcing_inputs(tokenizer, tokens, (1, 2, 4))
    plain, codes = tokenizer.next_scale_inputs(tokens), tokenizer.codes(tokens.indices)
    steps, dim, reach = step_ids(spec, (1, 2, 4)), spec.code_dim, WINDOW // 2
    assert torch.equal(inputs[:, :, :dim], plain)
    window = inputs[:, :, dim:].unflatten(2, (dim, WINDOW, WINDOW))
    for scale, side in enumerate(spec.scales):
        start = spec.offsets[scale]
        for place in range(side * side):
            y, x = divmod(place, side)
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    seen = window[:, start + place, :, reach + dy, reach + dx]
                    inside = 0 <= y + dy < side and 0 <= x + dx < side
                    other = start + (y + dy) * side + x + dx
                    if inside and steps[other] < steps[start + place]:
                        assert torch.equal(seen, codes[:, other])
                    else:
                        assert not seen.any()


@pytest.mark.parametrize("phases", [(), (1, 1, 2), (1, 2, 4)])
def test_stepwise_inputs_are_those_of_teacher_forcing(phases: tuple[int, ...]) -> None:
    tokenizer = with_phases(phases).image_tokenizer
    tokens, spec = random_tokens(tokenizer), tokenizer.spec
    whole = teacher_forcing_inputs(tokenizer, tokens, phases)
    state, drawn = tokenizer.initial_state(len(tokens)), None
    for step in drawing_steps(spec, phases):
        if step.scale > state.scale:
            assert drawn is not None
            state, drawn = tokenizer.accumulate(state, drawn), None
        part = step_inputs(tokenizer, state, drawn, step, phases)
        assert torch.equal(part, whole[:, flat_positions(spec, step)])
        own = tokens.indices[:, flat_positions(spec, step)]
        drawn = place_step(drawn, own, step, spec)


def test_cached_steps_are_the_masked_pass() -> None:
    pipeline = with_phases((1, 2, 4), depth=2)
    generator, tokenizer = pipeline.generator.double(), pipeline.image_tokenizer
    tokens, labels = random_tokens(tokenizer), torch.tensor([0, 2, 4])
    inputs = teacher_forcing_inputs(tokenizer, tokens, (1, 2, 4)).double()
    with torch.no_grad():
        whole, cache = generator(inputs, labels), generator.make_cache(3)
        for step in generator.steps:
            places = flat_positions(tokenizer.spec, step)
            part = generator(inputs[:, places], labels, cache)
            torch.testing.assert_close(part, whole[:, places], atol=1e-5, rtol=1e-5)


def test_later_steps_change_nothing_before_them() -> None:
    generator = with_phases((1, 2, 4), depth=2).generator
    spec, labels = generator.spec, torch.tensor([1])
    inputs = torch.randn(1, spec.length, generator.input_projection.in_features)
    places = flat_positions(spec, generator.steps[-2])
    changed = inputs.clone()
    changed[:, places] += 1
    with torch.no_grad():
        before, after = generator(inputs, labels), generator(changed, labels)
    same = (before == after).all(2)[0]
    steps = step_ids(spec, (1, 2, 4))
    assert same[steps < len(generator.steps) - 2].all()
    assert not same[steps >= len(generator.steps) - 2].any()


def test_drawn_tokens_are_those_of_a_masked_pass() -> None:
    """Greedy tokens, which the masked pass over them predicts again."""
    pipeline = with_phases((1, 2, 4))
    generator, tokenizer = pipeline.generator, pipeline.image_tokenizer
    labels = torch.tensor([0, 1, 2, 3])
    config = SamplingConfig(temperature=1e-4)
    tokens = generate(generator, tokenizer, labels, range(4), config).tokens
    inputs = teacher_forcing_inputs(tokenizer, tokens, (1, 2, 4))
    with torch.no_grad():
        best = generator.head.logits(generator(inputs, labels)).argmax(-1)
    assert torch.equal(best, tokens.indices[..., 0])
    assert len(tokens.indices.unique()) > 3


SETTINGS = {
    "guidance_scale": (1.0, 2.5, 1.0),
    "temperature": (1.0, 0.7, 1.3),
    "top_k": (75, 40, 20),
}


def test_phases_are_drawn_with_the_settings_of_their_scale() -> None:
    """Against a loop without cache or stacking; guidance ends before the scale of four phases."""
    phases = (1, 2, 4)
    pipeline = with_phases(phases, depth=2)
    generator, tokenizer = pipeline.generator, pipeline.image_tokenizer
    labels, seeds, spec = torch.tensor([0, 1, 2, 3]), [4, 0, 9, 4], tokenizer.spec
    null, uniforms = torch.full_like(labels, 4), SeededUniforms(seeds)
    indices = torch.zeros(4, spec.length, 1, dtype=torch.int64)
    for step in generator.steps:
        places = flat_positions(spec, step)
        scale, heat, kept = (values[step.scale] for values in SETTINGS.values())
        inputs = teacher_forcing_inputs(tokenizer, TokenPyramid(indices, spec), phases)
        with torch.no_grad():  # positions of later steps hold wrong inputs; nothing sees them
            guided, plain = (
                generator.head.logits(generator(inputs, of)[:, places]) for of in (labels, null)
            )
        logits = top_k((scale * guided + (1 - scale) * plain) / heat, int(kept))
        numbers = uniforms.draw(len(places), 1)
        indices[:, places, 0] = inverse_cdf(logits, numbers[..., 0])
    drawn = generate(generator, tokenizer, labels, seeds, SamplingConfig(**SETTINGS)).tokens
    assert torch.equal(drawn.indices, indices)


def test_phases_travel_with_the_weights(tmp_path: Any) -> None:
    pipeline = with_phases((1, 1, 4))
    pipeline.save_pretrained(tmp_path / "model")
    loaded = Pipeline.from_pretrained(tmp_path / "model")
    assert loaded.generator.config.phases == (1, 1, 4)
    assert isinstance(loaded.generator.config, GeneratorConfig)
    images = [made(["cat"], seeds=[3])[0].tobytes() for made in (pipeline, loaded)]
    assert images[0] == images[1]

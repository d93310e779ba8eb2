"""The next-scale loop against a plain one without cache, batches, guidance, errors."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from lambda24.common.draws import inverse_cdf
from lambda24.generator.heads import CategoricalHeadConfig, LatticeHeadConfig
from lambda24.generator.model import NextScaleGenerator
from lambda24.sampling.generate import generate, generate_progressively
from lambda24.sampling.logits import top_k, top_p
from lambda24.sampling.ramps import LinearRamp, VarRamp
from lambda24.sampling.seeds import SeededUniforms
from lambda24.sampling.settings import (
    MAX_GUIDANCE,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    SamplingConfig,
)
from lambda24.tokenizer.model import ImageTokenizer
from lambda24.tokenizer.quantizers import FSQConfig, GSQConfig, LeechConfig, QuantizerConfig
from lambda24.tokenizer.tokens import TokenPyramid
from tests.sampling.tiny_pipeline import CODES, SHAPE, tiny_pipeline

# `sampling.generate` names the function; the module is needed to patch it.
MODULE = import_module("lambda24.sampling.generate")

Models = tuple[NextScaleGenerator, ImageTokenizer]


def make(
    quantizer: QuantizerConfig = CODES,
    head: LatticeHeadConfig | CategoricalHeadConfig = SHAPE.head,
) -> Models:
    pipeline = tiny_pipeline((), quantizer=quantizer, head=head, num_classes=5, depth=2)
    return pipeline.generator, pipeline.image_tokenizer


@pytest.fixture(scope="module")
def models() -> Models:
    return make()


LABELS = torch.tensor([0, 3, 4, 1, 0, 2, 3, 3])
SEEDS = [5, 1, 2, 3, 5, 9, 7, 8]


def reference(models: Models, labels: Tensor, seeds: Sequence[int], **settings: object) -> Tensor:
    """Tokens (B, L, 1): no cache, no stacking; each setting a list with one entry per scale."""
    generator, image_tokenizer = models
    spec, uniforms = generator.spec, SeededUniforms(seeds)
    indices = torch.zeros(len(labels), spec.length, 1, dtype=torch.int64)
    null = torch.full_like(labels, generator.num_classes)
    for k in range(spec.num_scales):
        part = spec.scale_slice(k)
        inputs = image_tokenizer.next_scale_inputs(TokenPyramid(indices, spec))
        with torch.no_grad():  # positions behind scale k hold wrong inputs; nothing sees them
            conditional = generator.head.logits(generator(inputs, labels)[:, part])
            unconditional = generator.head.logits(generator(inputs, null)[:, part])
        scale, temperature, kept, nucleus = (
            settings[name][k]  # type: ignore[index]
            for name in ("guidance_scale", "temperature", "top_k", "top_p")
        )
        logits = (scale * conditional + (1 - scale) * unconditional) / temperature
        logits = top_p(top_k(logits, kept), nucleus)
        numbers = uniforms.draw(spec.scale_lengths[k], 1)
        indices[:, part, 0] = inverse_cdf(logits, numbers[..., 0])
    return indices


def test_loop_equals_a_plain_one(models: Models):
    settings = {
        "guidance_scale": (1.0, 1.5, 3.0),
        "temperature": (1.0, 0.8, 1.2),
        "top_k": (75, 40, 30),
        "top_p": (1.0, 0.9, 0.95),
    }
    generated = generate(*models, LABELS, SEEDS, SamplingConfig(**settings))
    assert torch.equal(generated.tokens.indices, reference(models, LABELS, SEEDS, **settings))
    generated.tokens.validate()
    assert torch.equal(generated.images, models[1].decode(generated.tokens))
    plain = {**settings, "guidance_scale": (1.0, 1.0, 1.0)}
    assert not torch.equal(generated.tokens.indices, reference(models, LABELS, SEEDS, **plain))


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_an_image_does_not_depend_on_its_batch(models: Models, guidance_scale: float):
    config = SamplingConfig(guidance_scale=guidance_scale, top_p=0.9)
    together = generate(*models, LABELS, SEEDS, config).tokens.indices
    for i, seed in enumerate(SEEDS):
        alone = generate(*models, LABELS[i : i + 1], [seed], config).tokens.indices
        assert torch.equal(alone[0], together[i])
    assert torch.equal(together[0], together[4])  # same label, same seed
    assert not torch.equal(together[6], together[7])  # same label, other seed


@pytest.mark.parametrize(
    ("scales", "rows"),
    [((1.0, 1.0, 1.0), [8, 8, 8]), ((2.0, 1.0, 1.0), [16, 8, 8]), ((1.0, 1.0, 2.0), [16, 16, 16])],
)
def test_skipping_the_unconditional_pass_changes_nothing(
    models: Models,
    scales: tuple[float, ...],
    rows: list[int],
    monkeypatch: pytest.MonkeyPatch,
):
    seen: list[int] = []
    forward = NextScaleGenerator.forward

    def spy(self, inputs, labels, cache=None):  # type: ignore[no-untyped-def]
        seen.append(len(inputs))
        return forward(self, inputs, labels, cache)

    monkeypatch.setattr(NextScaleGenerator, "forward", spy)
    config = SamplingConfig(guidance_scale=scales)
    tokens = generate(*models, LABELS, SEEDS, config).tokens.indices
    monkeypatch.setattr(MODULE, "num_paired_scales", lambda scales: 3)
    in_full = generate(*models, LABELS, SEEDS, config).tokens.indices
    assert seen == [*rows, 16, 16, 16]
    assert torch.equal(tokens, in_full)


def test_guiding_the_null_class_is_no_guidance(models: Models):
    null = torch.full((4,), 5)
    plain = generate(*models, null, SEEDS[:4]).tokens.indices
    guided = generate(*models, null, SEEDS[:4], SamplingConfig(guidance_scale=3.0)).tokens.indices
    assert torch.equal(plain, guided)
    assert not torch.equal(plain, generate(*models, LABELS[:4], SEEDS[:4]).tokens.indices)


def test_zero_guidance_is_the_null_class(models: Models):
    zero = SamplingConfig(guidance_scale=0.0)
    tokens = generate(*models, LABELS, SEEDS, zero).tokens.indices
    null = torch.full_like(LABELS, 5)
    assert torch.equal(tokens, generate(*models, null, SEEDS).tokens.indices)


def test_top_k_of_one_ignores_the_seed(models: Models):
    config = SamplingConfig(top_k=1)
    one = generate(*models, LABELS, SEEDS, config).tokens.indices
    assert torch.equal(one, generate(*models, LABELS, SEEDS[::-1], config).tokens.indices)
    cold = SamplingConfig(temperature=1e-5)
    assert torch.equal(one, generate(*models, LABELS, SEEDS, cold).tokens.indices)


def test_vars_guidance_as_a_list(models: Models):
    schedules = ((1.0, 1.75, 2.5), LinearRamp(start=1.0, end=2.5), VarRamp(cfg=1.5))
    one, two, three = (
        generate(*models, LABELS, SEEDS, SamplingConfig(guidance_scale=schedule)).tokens.indices
        for schedule in schedules
    )
    assert torch.equal(one, two)
    assert torch.equal(one, three)


@pytest.mark.parametrize("head", [CategoricalHeadConfig(), LatticeHeadConfig()])
@pytest.mark.parametrize("top_p", [None, 0.9])
def test_the_bounds_of_the_settings_can_be_drawn_with(head: Any, top_p: float | None):
    models = make(CODES if head.kind == "categorical" else LeechConfig(), head)
    ends = (MAX_GUIDANCE, MIN_TEMPERATURE), (-MAX_GUIDANCE, MAX_TEMPERATURE)
    for guidance, temperature in ends:
        config = SamplingConfig(guidance_scale=guidance, temperature=temperature, top_p=top_p)
        assert generate(*models, LABELS[:1], SEEDS[:1], config).images.isfinite().all()


def test_progress_ends_in_the_finished_image(models: Models):
    steps = list(generate_progressively(*models, LABELS, SEEDS))
    finished = generate(*models, LABELS, SEEDS)
    assert [step.scale for step in steps] == [0, 1, 2]
    assert torch.equal(torch.cat([step.tokens for step in steps], 1), finished.tokens.indices)
    assert torch.equal(steps[-1].images, finished.images)
    prefixes = models[1].decode_prefixes(finished.tokens)
    assert torch.equal(steps[0].images, prefixes[0])


def test_row_blocks_change_nothing(models: Models, monkeypatch: pytest.MonkeyPatch):
    config = SamplingConfig(guidance_scale=2.0, top_k=20)
    whole = generate(*models, LABELS, SEEDS, config).tokens.indices
    monkeypatch.setattr(MODULE, "MAX_LOGITS", 75 * 7)
    assert torch.equal(generate(*models, LABELS, SEEDS, config).tokens.indices, whole)


@pytest.mark.parametrize(
    ("batch", "length", "most"), [(6, 4, 10), (5, 4, 10), (2, 9, 4), (3, 1, 1)]
)
def test_row_blocks_cut_all_images_alike(batch: int, length: int, most: int):
    blocks = [range(part.start, part.stop) for part in MODULE.row_blocks(batch, length, most)]
    assert [row for block in blocks for row in block] == list(range(batch * length))
    assert max(map(len, blocks)) <= most
    cuts = [[len(b) for b in blocks if row in b] for row in range(batch * length)]
    assert all(cuts[i] == cuts[i % length] for i in range(batch * length))


def test_min_p_of_one_is_the_best_code(models: Models):
    best = generate(*models, LABELS, SEEDS, SamplingConfig(top_k=1)).tokens.indices
    ramp = LinearRamp(start=1.0, end=0.0)
    one = generate(*models, LABELS, SEEDS, SamplingConfig(min_p=1.0)).tokens.indices
    some = generate(*models, LABELS, SEEDS, SamplingConfig(min_p=ramp)).tokens.indices
    assert torch.equal(one, best)
    assert torch.equal(some[:, 0], best[:, 0])
    assert not torch.equal(some[:, 5:], best[:, 5:])


def test_lattice_head_with_and_without_filters():
    models = make(LeechConfig(), LatticeHeadConfig())
    config = SamplingConfig(guidance_scale=1.5, temperature=0.9)
    tokens = generate(*models, LABELS[:2], SEEDS[:2], config).tokens
    tokens.validate()
    alone = generate(*models, LABELS[1:2], SEEDS[1:2], config).tokens.indices
    assert torch.equal(alone[0], tokens.indices[1])
    best = generate(*models, LABELS[:2], SEEDS[:2], replace(config, top_k=1)).tokens.indices
    assert torch.equal(
        best, generate(*models, LABELS[:2], [1, 2], replace(config, top_k=1)).tokens.indices
    )


@pytest.mark.parametrize("top", [None, 3])
def test_several_codebooks(top: int | None):
    quantizer = GSQConfig(dim=6, groups=2, codebook_size=8)
    models = make(quantizer)
    config = SamplingConfig(guidance_scale=2.0, top_k=top, top_p=0.9 if top else None)
    generated = generate(*models, LABELS, SEEDS, config)
    assert generated.tokens.indices.shape == (8, 21, 2)
    generated.tokens.validate()
    assert len(generated.tokens.indices.unique()) > 1


def test_bf16_weights_are_cast_once_a_run(models: Models, monkeypatch: pytest.MonkeyPatch):
    generator = models[0]
    weights = {name: parameter.clone() for name, parameter in generator.named_parameters()}
    config = SamplingConfig(guidance_scale=2.0)
    seen = []
    linear = torch.nn.functional.linear

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(weight.dtype)
        return linear(x, weight, bias)

    with torch.autocast("cpu", torch.bfloat16):
        monkeypatch.setattr(torch.nn.functional, "linear", spy)
        once = generate(*models, LABELS, SEEDS, config).tokens.indices
        assert seen.count(torch.bfloat16) == 3 * 2 * 4  # scales, layers, matrices
        monkeypatch.setattr(MODULE, "cast_generator", lambda generator: generator)
        seen.clear()
        each_time = generate(*models, LABELS, SEEDS, config).tokens.indices
        assert torch.bfloat16 not in seen
    assert torch.equal(once, each_time)
    for name, parameter in generator.named_parameters():
        assert torch.equal(parameter, weights[name])


def test_bf16_autocast_runs(models: Models):
    with torch.autocast("cpu", torch.bfloat16):
        generated = generate(*models, LABELS, SEEDS, SamplingConfig(guidance_scale=2.0))
    generated.tokens.validate()
    assert generated.images.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": (1.0, -0.5, 1.0)}, "temperature must be positive, got -0.5"),
        ({"temperature": 1e-40}, r"temperature must be in \[1e-05, 100000\], got 1e-40"),
        ({"temperature": 1e39}, r"temperature must be in \[1e-05, 100000\], got 1e\+39"),
        ({"guidance_scale": 1e39}, r"guidance_scale must be in \[-10000, 10000\], got 1e\+39"),
        ({"guidance_scale": (1.0, 2.0, -1e5)}, r"guidance_scale must be in .* got -100000.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_k": 0}, r"top_k must be an integer in \[1, 75\], got 0"),
        ({"top_k": 76}, r"top_k must be an integer in \[1, 75\], got 76"),
        ({"top_k": 2.5}, "got 2.5"),
        ({"min_p": 1.5}, r"min_p must be in \[0, 1\], got 1.5"),
        ({"min_p": (0.0, 0.1, -0.1)}, r"min_p must be in \[0, 1\], got -0.1"),
        ({"min_p": (0.1, 0.2)}, "min_p lists 2 values, but there are 3 scales"),
        ({"guidance_scale": float("nan")}, r"(?s)guidance_scale.*finite"),
        ({"guidance_scale": (1.0, 2.0)}, "guidance_scale lists 2 values, but there are 3 scales"),
    ],
)
def test_bad_settings(models: Models, settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        generate(*models, LABELS, SEEDS, SamplingConfig(**settings))


def test_ramps_of_top_k_are_rounded(models: Models):
    config = SamplingConfig(top_k=LinearRamp(start=10.0, end=5.0))
    assert [s.top_k for s in config.resolve(models[0].spec)] == [10, 8, 5]


def test_bad_calls(models: Models):
    with pytest.raises(ValueError, match=r"\[0, 5\].*got \[0, 6\]"):
        generate(*models, torch.tensor([0, 6]), [1, 2])
    with pytest.raises(ValueError, match="got 2 labels but 3 seeds"):
        generate(*models, torch.tensor([0, 1]), [1, 2, 3])
    with pytest.raises(ValueError, match="B at least 1"):
        generate(*models, torch.tensor([], dtype=torch.int64), [])
    other = make(FSQConfig(levels=(5, 3, 3)))
    with pytest.raises(ValueError, match=r"\(45,\).*\(75,\)"):
        generate(models[0], other[1], LABELS, SEEDS)
    dropping = NextScaleGenerator(replace(models[0].config, drop_path=0.1), models[0].spec)
    with pytest.raises(ValueError, match=r"\.eval\(\)"):
        generate(dropping, models[1], LABELS, SEEDS)

"""The next-scale loop: labels and seeds in, tokens and images out.

One step a scale, or a phase of one: transformer over the new positions (conditional and
unconditional images stacked in one batch), guided distribution -> tempered -> top-k -> top-p ->
min-p -> drawn. After a scale's last step the tokenizer's sum is extended.

Shapes: B images, S scales, n_k tokens of scale k, R uniforms a draw, G codebooks of a token.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from lambda24.generator.heads import Head
from lambda24.generator.model import NextScaleGenerator, check_labels
from lambda24.generator.phases import place_step, step_inputs
from lambda24.sampling.guidance import num_paired_scales
from lambda24.sampling.logits import Candidates, best_candidates, min_p, top_p
from lambda24.sampling.low_precision import cast_generator
from lambda24.sampling.seeds import SeededUniforms
from lambda24.sampling.settings import SamplingConfig, ScaleSettings
from lambda24.tokenizer.model import ImageTokenizer
from lambda24.tokenizer.pyramid.multiscale import PyramidState
from lambda24.tokenizer.tokens import TokenPyramid, TokenSpec

# Tokens are drawn in blocks of rows, so that dense logits stay under 32 MiB whatever the batch: for
# larger ones glibc maps fresh pages every time.
MAX_LOGITS = 1 << 23

# Given the state before a scale and the tokens (B, n_k, G) drawn for it, those to go on with. With
# phases it is asked after each; tokens of later ones are zeros yet.
Revise = Callable[[PyramidState, Tensor], Tensor]


@dataclass(frozen=True)
class Generated:
    """Finished images (B, 3, H, W) in [-1, 1] and their tokens."""

    tokens: TokenPyramid
    images: Tensor


@dataclass(frozen=True)
class ScaleStep:
    """One scale done: its number from 0, its tokens (B, n_k, G), images (B, 3, H, W) so far."""

    scale: int
    tokens: Tensor
    images: Tensor


def generate(
    generator: NextScaleGenerator,
    image_tokenizer: ImageTokenizer,
    labels: Tensor,
    seeds: Sequence[int] | Tensor,
    config: SamplingConfig | None = None,
    *,
    revise: Revise | None = None,
) -> Generated:
    """Generates one image per label and seed.

    An image's random numbers come from its own seed alone. Matrix products round differently in
    batches of different sizes, which can move a probability across a random number; among batches
    of one size an image depends neither on its place nor on the others. `Pipeline` keeps to one
    size.

    Args:
        generator: in eval mode, on the tokenizer's device.
        image_tokenizer: with the same spec.
        labels: (B,) in [0, num_classes]; num_classes is the null class.
        seeds: B integers.
        config: defaults to plain sampling.
        revise: may replace each scale's tokens before the next scale sees them.

    Raises:
        ValueError: labels out of range, another number of seeds than labels, a tokenizer of another
            spec, settings that do not fit the spec, a generator whose output is not finite.
    """
    tokens = []
    with torch.inference_mode():
        steps = _scales(generator, image_tokenizer, labels, seeds, config, revise)
        for scale_tokens, state in steps:
            tokens.append(scale_tokens)
            latent = state.latent
        images = image_tokenizer.decode_latent(latent)
    return Generated(TokenPyramid.from_scales(tokens, generator.spec), images)


@torch.inference_mode()
def generate_progressively(
    generator: NextScaleGenerator,
    image_tokenizer: ImageTokenizer,
    labels: Tensor,
    seeds: Sequence[int] | Tensor,
    config: SamplingConfig | None = None,
    *,
    revise: Revise | None = None,
) -> Iterator[ScaleStep]:
    """`generate`, yielding the decoded images after every scale; same arguments and errors."""
    for scale_tokens, state in _scales(generator, image_tokenizer, labels, seeds, config, revise):
        images = image_tokenizer.decode_latent(state.latent)
        yield ScaleStep(state.scale - 1, scale_tokens, images)


def check_specs(generator: NextScaleGenerator, image_tokenizer: ImageTokenizer) -> None:
    """Raises ValueError when the two were made for different pyramids."""
    if generator.spec != image_tokenizer.spec:
        raise ValueError(
            f"the tokenizer's spec {image_tokenizer.spec} is not "
            f"the generator's spec {generator.spec}"
        )


def _scales(
    generator: NextScaleGenerator,
    image_tokenizer: ImageTokenizer,
    labels: Tensor,
    seeds: Sequence[int] | Tensor,
    config: SamplingConfig | None,
    revise: Revise | None,
) -> Iterator[tuple[Tensor, PyramidState]]:
    """Tokens (B, n_k, G) of each scale and the tokenizer's state after it."""
    _check(generator, image_tokenizer, labels, seeds)
    settings = (config or SamplingConfig()).resolve(generator.spec)
    uniforms = SeededUniforms(seeds)
    generator = cast_generator(generator)
    batch = len(labels)
    labels = labels.to(generator.device)
    paired = num_paired_scales([setting.guidance_scale for setting in settings])
    null = torch.full_like(labels, generator.num_classes)
    conditions = torch.cat([labels, null]) if paired else labels
    cache = generator.make_cache(len(conditions))
    state = image_tokenizer.initial_state(batch)
    for k, setting in enumerate(settings):
        if k == paired > 0:  # guidance has ended: drop the unconditional half
            conditions, cache = labels, cache.first(batch)
        copies = len(conditions) // batch
        tokens: Tensor | None = None
        for step in (step for step in generator.steps if step.scale == k):
            inputs = step_inputs(image_tokenizer, state, tokens, step, generator.config.phases)
            hidden = generator(inputs.repeat(copies, 1, 1), conditions, cache)
            if not hidden.isfinite().all():
                raise ValueError(f"the generator's output at scale {k} is not finite")
            hidden = rearrange(hidden, "(c b) n w -> c (b n) w", c=copies)
            rows = _draw(generator.head, hidden, setting, uniforms, batch, generator.spec)
            drawn = rearrange(rows, "(b n) g -> b n g", b=batch)
            tokens = place_step(tokens, drawn, step, generator.spec)
            if revise is not None:
                tokens = revise(state, tokens)
        assert tokens is not None
        state = image_tokenizer.accumulate(state, tokens)
        yield tokens, state


def _check(
    generator: NextScaleGenerator,
    image_tokenizer: ImageTokenizer,
    labels: Tensor,
    seeds: Sequence[int] | Tensor,
) -> None:
    check_specs(generator, image_tokenizer)
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"labels must be (B,) with B at least 1, got {tuple(labels.shape)}")
    if len(seeds) != len(labels):
        raise ValueError(f"got {len(labels)} labels but {len(seeds)} seeds")
    check_labels(labels, generator.num_classes)
    if generator.training and generator.config.drop_path:
        raise ValueError("generator is in training mode with drop_path: call .eval() first")


def _draw(
    head: Head,
    hidden: Tensor,
    setting: ScaleSettings,
    uniforms: SeededUniforms,
    batch: int,
    spec: TokenSpec,
) -> Tensor:
    """Tokens (B n, G) from hidden states (1 or 2, B n, W), the conditional ones first."""
    length = hidden.shape[1] // batch
    most = max(1, MAX_LOGITS // (max(spec.codebook_sizes) * spec.num_codebooks))
    numbers: Tensor | None = None
    tokens = []
    for rows in row_blocks(batch, length, most):
        if setting.guidance_scale == 1:
            distribution = head.distribution(hidden[0, rows])
        else:
            distribution = head.guided(hidden[0, rows], hidden[1, rows], setting.guidance_scale)
        if setting.temperature != 1:
            distribution = distribution.tempered(setting.temperature)
        needed = spec.num_codebooks if setting.filters else distribution.num_uniforms
        if numbers is None:  # drawn for all rows at once: an image's stream knows no blocks
            numbers = uniforms.draw(length, needed)
            numbers = rearrange(numbers, "b n r -> (b n) r").to(hidden.device)
        if not setting.filters:
            tokens.append(distribution.sample(numbers[rows]))
        elif spec.num_codebooks > 1:
            tokens.append(filtered(distribution.logits(), setting).draw(numbers[rows]))
        else:
            drawn = filtered(distribution.logits(), setting).draw(numbers[rows, 0])
            tokens.append(drawn.unsqueeze(-1))
    return torch.cat(tokens)


def row_blocks(batch: int, length: int, most: int) -> list[slice]:
    """Cuts `batch * length` rows, image after image, into blocks of at most `most` (at least 1).

    All images are cut alike, so that an image's rounding does not depend on its place: a block is
    whole images, equally many in each, or about equal parts of one image.
    """
    if length > most:
        parts = -(-length // most)
        cuts = [length * part // parts for part in range(parts + 1)]
        return [
            slice(image * length + start, image * length + stop)
            for image in range(batch)
            for start, stop in itertools.pairwise(cuts)
        ]
    images = max(n for n in range(1, batch + 1) if batch % n == 0 and n * length <= most)
    return [slice(i * length, (i + images) * length) for i in range(0, batch, images)]


def filtered(logits: Tensor, setting: ScaleSettings) -> Candidates:
    """Applies top-k, top-p, then min-p to dense logits `(..., V)`."""
    candidates = Candidates(logits)
    if setting.top_k is not None:
        candidates = best_candidates(logits, setting.top_k)
    kept = candidates.logits
    if setting.top_p is not None:
        kept = top_p(kept, setting.top_p)
    if setting.min_p is not None:
        kept = min_p(kept, setting.min_p)
    return Candidates(kept, candidates.codes)

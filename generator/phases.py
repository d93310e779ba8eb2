"""Phases: the tokens of a scale drawn in a few groups, each of which sees those before it.

Tokens of one scale that are drawn together are independent of one another given the coarser scales;
where a scale carries much of the image, that shows. Drawn in phases, a token also sees the codes of
its neighbours that earlier phases have drawn: they stand in a window around it, zero where nothing
is drawn yet, and are one more linear map of the generator's input. Two phases are the colours of a
checkerboard, four the places of a 2 x 2 cell, its diagonals first. (The idea of masked refinement
within a scale is HMAR's, arXiv 2506.04421; the window and the order are our own.)

A step is what is drawn at a time: a phase of a scale. Positions keep their order, scale after scale
and row after row; a step is a set of them.

Shapes: B images, L tokens of a pyramid, n of a step, C code channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lambda24.tokenizer.model import ImageTokenizer
from lambda24.tokenizer.pyramid.multiscale import PyramidState
from lambda24.tokenizer.tokens import TokenPyramid, TokenSpec

WINDOW = 5
"""Side of the window of codes that a token of a later phase sees."""

# Phase of each place of a 2 x 2 cell, row by row.
CELLS = {1: (0, 0, 0, 0), 2: (0, 1, 1, 0), 4: (0, 2, 3, 1)}


@dataclass(frozen=True)
class Step:
    """What is drawn at a time: `phase` of `scale`, at these `positions` of the scale."""

    scale: int
    phase: int
    positions: tuple[int, ...]


@lru_cache(maxsize=64)
def drawing_steps(spec: TokenSpec, phases: tuple[int, ...]) -> tuple[Step, ...]:
    """All steps in order.

    Args:
        phases: how many each scale has: 1, 2 or 4; empty is one for every scale.

    Raises:
        ValueError: another number of entries than scales, or a scale too small for its phases.
    """
    counts = phases or (1,) * spec.num_scales
    if len(counts) != spec.num_scales:
        raise ValueError(
            f"phases must have one entry per scale of {spec.scales}, got {len(counts)}: {phases}"
        )
    steps = []
    for scale, (side, count) in enumerate(zip(spec.scales, counts, strict=True)):
        if count not in CELLS or (count > 1 and (side < 2 or scale == 0)):
            raise ValueError(
                f"phases of scale {scale} must be 1, or 2 or 4 from 2 x 2 on and not of the first "
                f"scale, got {count} of {side} x {side}"
            )
        grid = [CELLS[count][2 * (y % 2) + x % 2] for y in range(side) for x in range(side)]
        for phase in range(count):
            places = tuple(place for place, own in enumerate(grid) if own == phase)
            steps.append(Step(scale, phase, places))
    return tuple(steps)


def step_ids(spec: TokenSpec, phases: tuple[int, ...]) -> Tensor:
    """The step of each flat position, int64 (L,)."""
    ids = torch.empty(spec.length, dtype=torch.int64)
    for number, step in enumerate(drawing_steps(spec, phases)):
        ids[flat_positions(spec, step)] = number
    return ids


def flat_positions(spec: TokenSpec, step: Step) -> Tensor:
    """Places of a step among all tokens, int64 (n,)."""
    return spec.offsets[step.scale] + torch.tensor(step.positions)


def input_dim(spec: TokenSpec, phases: tuple[int, ...]) -> int:
    """Channels of the generator's inputs: the latent so far and, with phases, the window."""
    has_window = max(phases, default=1) > 1
    return spec.code_dim * (1 + (WINDOW**2 if has_window else 0))


def step_inputs(
    image_tokenizer: ImageTokenizer,
    state: PyramidState,
    tokens: Tensor | None,
    step: Step,
    phases: tuple[int, ...],
) -> Tensor:
    """Inputs (B, n, D) of one step, D = `input_dim`.

    Args:
        state: of the pyramid before the step's scale.
        tokens: (B, n_k, G) of the scale, of which only earlier phases' are looked at; None: none.
    """
    inputs = state.next_inputs
    assert inputs is not None
    own = torch.tensor(step.positions, device=inputs.device)
    if max(phases, default=1) == 1:
        return inputs
    codes = torch.zeros_like(inputs)
    if tokens is not None and step.phase:
        spec = image_tokenizer.spec
        before = torch.zeros(inputs.shape[1], dtype=torch.bool, device=inputs.device)
        for earlier in drawing_steps(spec, phases):
            if earlier.scale == step.scale and earlier.phase < step.phase:
                before[list(earlier.positions)] = True
        found = image_tokenizer.codes(tokens).to(inputs.dtype)
        codes = torch.where(before[:, None], found, codes)
    return torch.cat([inputs[:, own], _windows(codes)[:, own]], dim=2)


def place_step(tokens: Tensor | None, drawn: Tensor, step: Step, spec: TokenSpec) -> Tensor:
    """A scale's tokens (B, n_k, G) with a step's (B, n, G) in their places; the rest as it was."""
    if drawn.shape[1] == spec.scale_lengths[step.scale]:
        return drawn
    shape = (drawn.shape[0], spec.scale_lengths[step.scale], drawn.shape[2])
    found = drawn.new_zeros(shape) if tokens is None else tokens.clone()
    found[:, list(step.positions)] = drawn
    return found


def teacher_forcing_inputs(
    image_tokenizer: ImageTokenizer, tokens: TokenPyramid, phases: tuple[int, ...] = ()
) -> Tensor:
    """Inputs (B, L, D) of all steps, each as if all before it had drawn these tokens.

    The same values, bit for bit, as `step_inputs` one after the other.
    """
    if max(phases, default=1) == 1:
        return image_tokenizer.next_scale_inputs(tokens)
    spec = image_tokenizer.spec
    states = list(image_tokenizer.states(tokens))
    found: Tensor | None = None
    for step in drawing_steps(spec, phases):
        own = tokens.scale(step.scale)
        part = step_inputs(image_tokenizer, states[step.scale], own, step, phases)
        if found is None:
            found = part.new_empty(len(tokens), spec.length, part.shape[2])
        found[:, flat_positions(spec, step).to(part.device)] = part
    assert found is not None
    return found


def _windows(codes: Tensor) -> Tensor:
    """Codes (B, side^2, C) around each place, zero beyond the edge: (B, side^2, C WINDOW^2)."""
    side = round(codes.shape[1] ** 0.5)
    maps = rearrange(codes, "b (h w) c -> b c h w", h=side)
    return rearrange(F.unfold(maps, WINDOW, padding=WINDOW // 2), "b d n -> b n d")

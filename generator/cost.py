"""What a training will compute, estimated: FLOPs of an image and GPU-hours.

6 N D: every weight of a matrix multiplies and adds once forward and twice backward for each row it
is applied to. To that come the products of attention, over the pairs that the mask allows. What
checkpointing and the chunked loss compute again does not count, nor do the frozen tokenizer,
softmaxes, norms and the optimizer.
"""

from __future__ import annotations

from torch import nn

from lambda24.generator.model import NextScaleGenerator

ASSUMED_TFLOPS = 150.0
"""Sustained TFLOP/s of a GPU: about half the bf16 peak of an A100. An assumption, not a measure."""


def training_flops(model: NextScaleGenerator) -> int:
    """FLOPs of training on one image, forward and backward (estimate)."""
    spec, config = model.spec, model.config
    pairs = sum(
        length * seen for length, seen in zip(spec.scale_lengths, spec.offsets[1:], strict=True)
    )
    per_image = {model.shared_adaln, model.head_adaln, *(block.adaln for block in model.blocks)}
    weights = {True: 0, False: 0}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weights[module in per_image] += module.weight.numel()
    # Forward, a pair costs 2 W for its score and 2 W for its share of the sum; backward, twice it.
    attention = 3 * 4 * config.width * pairs * config.depth
    return 6 * (weights[False] * spec.length + weights[True]) + attention


def gpu_hours(flops: float, tflops: float = ASSUMED_TFLOPS) -> float:
    """Hours of one GPU at a sustained speed."""
    return flops / (tflops * 1e12) / 3600


def cost_text(model: NextScaleGenerator, images: int) -> str:
    """One line on a training over `images` images; the model may be on the meta device."""
    flops = training_flops(model)
    return (
        f"compute (estimate): {flops / 1e12:,.3f} TFLOPs an image (6 N D and attention), "
        f"{flops * images:.2e} FLOPs in all; {gpu_hours(flops * images):,.1f} GPU-hours at an "
        f"assumed {ASSUMED_TFLOPS:,.0f} TFLOP/s sustained, without the tokenizer"
    )

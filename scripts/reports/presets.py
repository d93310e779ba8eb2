"""A Markdown table of presets: parameters, and estimates of memory and cost."""

from __future__ import annotations

from collections.abc import Sequence

from lambda24.common.optim.build import AnyOptimizerConfig, state_size
from lambda24.common.training.estimate import FP32_BYTES
from lambda24.generator.cost import gpu_hours, training_flops
from lambda24.generator.plan import activation_bytes, build_shapes
from lambda24.generator.presets import Preset, preset

IMAGENET_IMAGES = 1_281_167


def preset_table(
    names: Sequence[str], optimizer: AnyOptimizerConfig, *, images: int, tflops: float
) -> str:
    """Markdown: parameters, memory of a GPU and cost of presets; all but parameters estimates.

    Args:
        optimizer: whose state counts.
        images: of a micro-batch on a GPU.
        tflops: assumed, sustained.
    """
    hours = f"GPU-hours an ImageNet epoch at {tflops:,.0f} TFLOP/s"
    columns = (
        "preset",
        "parameters",
        "tokens",
        f"states ({optimizer.kind}), GiB",
        f"activations of {images} images, GiB",
        "with checkpointing, GiB",
        "TFLOPs an image",
        hours,
    )
    rows = [columns, tuple("---" for _ in columns)]
    for name in names:
        row = preset(name)
        model = build_shapes(row.config, row.spec)
        count = sum(parameter.numel() for parameter in model.parameters())
        # Weights, gradients (under DDP its buckets) and averages beside the optimizer's state.
        states = FP32_BYTES * (3 * count + state_size(model, optimizer))
        kept = [images * _activations(row, checkpointed) for checkpointed in (False, True)]
        flops = training_flops(model)
        cells = (
            name,
            f"{count / 1e6:,.0f} M",
            str(row.spec.length),
            *(f"{part / 2**30:,.1f}" for part in (states, *kept)),
            f"{flops / 1e12:,.2f}",
            f"{gpu_hours(flops * IMAGENET_IMAGES, tflops):,.1f}",
        )
        rows.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _activations(row: Preset, checkpointed: bool) -> int:
    return activation_bytes(
        row.config, row.spec, bf16=True, checkpoint_activations=checkpointed, on_gpu=True
    )

"""What a stage-2 run will be, for a dry run: parameters, tokens, memory, steps.

Trunks are built without memory and run on shapes alone; nothing is read or downloaded.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lambda24.common.optim.build import state_size
from lambda24.common.training.estimate import activations_per_image, estimate_memory, length_text
from lambda24.common.training.launch import resolve_precision
from lambda24.generator.config import GeneratorConfig
from lambda24.generator.cost import cost_text
from lambda24.generator.cpu_forms.tiles import forms_of_gpus
from lambda24.generator.heads import CategoricalHeadConfig, Head, build_head
from lambda24.generator.model import NextScaleGenerator
from lambda24.generator.settings import GeneratorTrainingConfig, check_tokenizer
from lambda24.tokenizer import ImageTokenizer, TokenSpec
from lambda24.tokenizer.model import TokenizerConfig


def describe(config: GeneratorTrainingConfig, tokenizer: TokenizerConfig) -> str:
    """The plan of a run, a few lines of text.

    Raises:
        ValueError: data or a head that does not suit the tokenizer.
    """
    check_tokenizer(config, tokenizer)
    with torch.device("meta"):
        image_tokenizer = ImageTokenizer(tokenizer)
    spec, loop = image_tokenizer.spec, config.loop
    model = build_shapes(config.model, spec)
    count, head = _count(model), _count(model.head)
    bf16 = resolve_precision(loop.precision) == "bf16"
    recompute, on_gpu = config.checkpoint_activations, torch.cuda.is_available()
    memory = estimate_memory(
        count,
        averaged=count,
        activations=activation_bytes(
            config.model, spec, bf16=bf16, checkpoint_activations=recompute, on_gpu=on_gpu
        ),
        optimizer=state_size(model, config.optimizer),
        frozen=_count(image_tokenizer),
    )
    return "\n".join(
        [
            f"generator: {count:,} parameters, of which the head {head:,}",
            f"scales {spec.scales}: {spec.length:,} tokens of {spec.bits_per_token:.2f} bits, "
            f"{spec.bits_per_image:,.0f} bits per image",
            memory.text(loop.batch_size // loop.accumulation),
            f"activations are the generator's, in {'bf16' if bf16 else 'fp32'} on a "
            f"{'GPU' if on_gpu else 'CPU'}",
            length_text(loop),
            cost_text(model, loop.steps * loop.batch_size),
        ]
    )


def build_shapes(config: GeneratorConfig, spec: TokenSpec) -> NextScaleGenerator:
    """The generator on the meta device, with a head of `build_head_shapes`."""
    with torch.device("meta"):
        stand_in = replace(config, head=CategoricalHeadConfig())
        model = NextScaleGenerator(stand_in, replace(spec, codebook_sizes=(1,)))
    model.head = build_head_shapes(config, spec)
    return model


def build_head_shapes(config: GeneratorConfig, spec: TokenSpec) -> Head:
    """The head, on the meta device if it is dense; the others have tables, and are small."""
    with torch.device("meta" if isinstance(config.head, CategoricalHeadConfig) else "cpu"):
        return build_head(config.head, config.width, spec)


def activation_bytes(
    config: GeneratorConfig,
    spec: TokenSpec,
    *,
    bf16: bool,
    checkpoint_activations: bool = False,
    on_gpu: bool = False,
) -> int:
    """Bytes that each image adds to what the gradient through trunk and head keeps.

    Counted on shapes alone; only a head with tables runs, on zeros.

    Args:
        checkpoint_activations: counts what blocks start from, and one block's own activations.
        on_gpu: counts the operators that GPUs run without a compiler; False counts a CPU's, which
            are in tiles, and in bf16 keep the probabilities of attention.
    """

    def trunk(depth: int, recompute: bool) -> int:
        return _trunk_bytes(replace(config, depth=depth), spec, recompute)

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        forms_of_gpus() if on_gpu else nullcontext(),
    ):
        kept = _head_bytes(config, spec)
        if checkpoint_activations:
            kept += trunk(3, False) - trunk(2, False)
        if config.depth <= 3:
            return kept + trunk(config.depth, checkpoint_activations)
        # All blocks but the first, which drops nothing, keep the same.
        two, three = (trunk(depth, checkpoint_activations) for depth in (2, 3))
        return kept + two + (config.depth - 2) * (three - two)


def _trunk_bytes(config: GeneratorConfig, spec: TokenSpec, recompute: bool) -> int:
    trunk = build_shapes(config, spec)

    def run(n: int) -> Tensor:
        labels = torch.zeros(n, dtype=torch.int64)
        inputs = torch.empty(n, spec.length, spec.code_dim)
        hidden: Tensor = trunk(inputs, labels, checkpoint_activations=recompute)
        return hidden

    with FakeTensorMode(allow_non_fake_inputs=True):
        trunk.to_empty(device="cpu")
        return activations_per_image(run)


def _head_bytes(config: GeneratorConfig, spec: TokenSpec) -> int:
    head = build_head_shapes(config, spec)

    def run(n: int) -> Tensor:
        hidden = torch.zeros(n, spec.length, config.width, requires_grad=True)
        tokens = torch.zeros(n, spec.length, spec.num_codebooks, dtype=torch.int64)
        return head.loss(hidden, tokens).nll

    if not next(head.parameters()).is_meta:
        return activations_per_image(run)
    with FakeTensorMode(allow_non_fake_inputs=True):
        head.to_empty(device="cpu")
        return activations_per_image(run)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

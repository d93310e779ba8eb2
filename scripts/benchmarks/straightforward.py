"""A straightforward next-scale sampler, to measure `generate` against: same weights, same numbers.

It does what the published samplers do (VAR, arXiv 2404.02905; Infinity-CC, 2512.14697), in fp32:
conditional and unconditional images go through all scales stacked, keys and values are
concatenated, AdaLN vectors are made at every scale, logits of all codes exist at once, top-k masks
them, top-p sorts them whole. Only the draw is ours, an inverse CDF of the images' own uniform
numbers in place of `torch.multinomial`, so that tokens can be compared.

Shapes: B images, n tokens of a scale, W width, H heads, D head channels, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lambda24.generator.blocks import MAX_LOG_TEMPERATURE, Attention, Block
from lambda24.generator.embeddings import rotate
from lambda24.generator.heads.categorical import CategoricalHead
from lambda24.generator.heads.lattice import LatticeHead
from lambda24.generator.model import NextScaleGenerator
from lambda24.sampling.generate import Generated
from lambda24.sampling.seeds import SeededUniforms
from lambda24.sampling.settings import SamplingConfig, ScaleSettings
from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.lattices.softmax.tables import NUM_VALUES
from lambda24.tokenizer.model import ImageTokenizer
from lambda24.tokenizer.tokens import TokenPyramid


@dataclass
class ReferenceSampler:
    """Samples from a generator whose tokens have one codebook.

    Args:
        generator: in eval mode, with a categorical head or a lattice head of one component.
        image_tokenizer: with the same spec.
        config: guidance, temperature, top-k and top-p; min-p is not there.
    """

    generator: NextScaleGenerator
    image_tokenizer: ImageTokenizer
    config: SamplingConfig
    output: list[tuple[Tensor, Tensor | None]] = field(init=False)

    def __post_init__(self) -> None:
        self.output = output_layers(self.generator)

    @torch.inference_mode()
    def __call__(self, labels: Tensor, seeds: Sequence[int] | Tensor) -> Generated:
        """As `generate`."""
        generator, spec = self.generator, self.generator.spec
        uniforms, batch = SeededUniforms(seeds), len(labels)
        conditions = torch.cat([labels, torch.full_like(labels, generator.num_classes)])
        cache: list[tuple[Tensor, Tensor] | None] = [None] * len(generator.blocks)
        state, tokens = self.image_tokenizer.initial_state(batch), []
        for k, setting in enumerate(self.config.resolve(spec)):
            assert state.next_inputs is not None
            hidden = self._hidden(state.next_inputs.repeat(2, 1, 1), conditions, k, cache)
            logits = hidden
            for weight, bias in self.output:
                logits = F.linear(logits, weight, bias)
            scale = setting.guidance_scale
            logits = scale * logits[:batch] + (1 - scale) * logits[batch:]
            numbers = uniforms.draw(spec.scale_lengths[k], 1)
            tokens.append(draw(filter_logits(logits, setting), numbers))
            state = self.image_tokenizer.accumulate(state, tokens[-1])
        images = self.image_tokenizer.decode_latent(state.latent)
        return Generated(TokenPyramid.from_scales(tokens, spec), images)

    def _hidden(
        self,
        inputs: Tensor,
        labels: Tensor,
        scale: int,
        cache: list[tuple[Tensor, Tensor] | None],
    ) -> Tensor:
        """Hidden states (B, n, W) of one scale; extends the cache."""
        generator = self.generator
        part = generator.spec.scale_slice(scale)
        condition = generator.class_embedding(labels)
        if scale == 0:
            x = condition[:, None] + generator.start
        else:
            x = generator.input_projection(inputs)
        x = x + generator.level_embedding.weight[scale]
        rope = None
        if generator.position_table is None:
            rope = generator.rope[:, part]
        else:
            x = x + generator.position_table[part]
        active = F.silu(condition)
        if generator.shared_adaln is not None:
            active = generator.shared_adaln(active).unflatten(1, (6, -1))
        for layer, block in enumerate(generator.blocks):
            assert isinstance(block, Block)
            gamma1, gamma2, scale1, scale2, shift1, shift2 = block.vectors(active, x.dtype)
            attended, cache[layer] = attend(
                block.attention, _norm(x) * (1 + scale1) + shift1, rope, cache[layer]
            )
            x = x + gamma1 * attended
            mixed = F.gelu(block.mlp.fc1(_norm(x) * (1 + scale2) + shift2), approximate="tanh")
            x = x + gamma2 * block.mlp.fc2(mixed)
        last_scale, last_shift = generator.head_adaln(F.silu(condition))[:, None].chunk(2, -1)
        return _norm(x) * (1 + last_scale) + last_shift


def attend(
    attention: Attention, x: Tensor, rope: Tensor | None, cached: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Attention of x (B, n, W) to itself and what is cached; keys and values (B, H, L, D)."""
    bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
    qkv = F.linear(x, attention.qkv.weight, bias)
    q, k, v = qkv.unflatten(2, (3, attention.num_heads, attention.head_dim)).unbind(2)
    scale = attention.head_dim**-0.5
    if attention.log_temperature is not None:
        temperature = attention.log_temperature.clamp(max=MAX_LOG_TEMPERATURE).exp()
        q, k, scale = F.normalize(q, dim=-1) * temperature[:, None], F.normalize(k, dim=-1), 1.0
    if rope is not None:
        q, k = rotate(q, rope), rotate(k, rope)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    if cached is not None:
        k, v = (torch.cat(pair, dim=2) for pair in zip(cached, (k, v), strict=True))
    out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return attention.proj(out.transpose(1, 2).flatten(2)), (k, v)


def output_layers(generator: NextScaleGenerator) -> list[tuple[Tensor, Tensor | None]]:
    """Weights and biases that turn hidden states (..., W) into the logits (..., V) of all codes.

    The lattice softmax's logits are its scores times a fixed matrix of 0 and 1.

    Raises:
        ValueError: another head, or more than one codebook.
    """
    head = generator.head
    if isinstance(head, CategoricalHead) and len(head.linears) == 1:
        weight, bias = head.linears[0].parameters()
        return [(weight, bias)]
    if not isinstance(head, LatticeHead) or head.num_mixtures > 1:
        raise ValueError(f"the reference has no logits of this {type(head).__name__}")
    columns = leech.codebook(torch.int64) + 4 + NUM_VALUES * torch.arange(leech.DIM)
    chosen = torch.zeros(leech.NUM_CODES, leech.DIM * NUM_VALUES).scatter_(1, columns, 1.0)
    return [(head.linear.weight, head.linear.bias), (chosen, None)]


def filter_logits(logits: Tensor, setting: ScaleSettings) -> Tensor:
    """Temperature, top-k, then top-p over (B, n, V), as VAR does it."""
    logits = logits / setting.temperature
    if setting.top_k is not None:
        worst = logits.topk(setting.top_k, sorted=False).values.amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < worst, -torch.inf)
    if setting.top_p is not None:
        rising, order = logits.sort(dim=-1)
        below = rising.double().softmax(-1).cumsum(-1) <= 1 - setting.top_p
        below[..., -1] = False
        logits = logits.masked_fill(below.scatter(-1, order, below), -torch.inf)
    return logits


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens (B, n, 1) by inverse CDF from uniforms (B, n, 1)."""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, uniforms, right=True).clamp(max=logits.shape[-1] - 1)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)

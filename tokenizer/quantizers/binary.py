"""Binary codes: LFQ (signs, arXiv 2310.05737) and BSQ (signs on the sphere, arXiv 2406.07548).

A token of d bits is a vertex of a hypercube. Entropy losses keep bits confident per token and
varied over the batch. The posterior over vertices, softmax(2 z.c / T), factorises over bits, so
the entropy per token is exact; the entropy of the batch mean is taken over groups of at most 10
bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lambda24.common.config import config_class
from lambda24.tokenizer.quantizers.base import Quantized, Quantizer, straight_through, unit

_MAX_INDEX_BITS = 62
_MAX_GROUP_BITS = 10


@config_class
class BinaryConfig:
    """What LFQ and BSQ share.

    Args:
        num_bits: d, bits of a token and channels of the latent.
        num_codebooks: G, into how many indices a token's bits are split (at most 62 bits each).
        group_bits: most bits of a group of the batch entropy; 2**group_bits numbers a token.
        temperature: T of the posterior softmax(2 z.c / T).
        entropy_weight: weight of both entropy losses.
        diversity_weight: further factor of the batch entropy loss.
        commitment_weight: weight of the mean squared distance from the latent to its code.
        ramp_start: factor of the entropy losses at step 0, falling linearly to 1 at `ramp_steps`.
    """

    num_bits: int = 18
    num_codebooks: int = 1
    group_bits: int = 9
    temperature: float = 1.0
    entropy_weight: float = 0.1
    diversity_weight: float = 1.0
    commitment_weight: float = 0.0
    ramp_start: float = 3.0
    ramp_steps: int = 2000

    def __post_init__(self) -> None:
        if self.num_codebooks < 1 or self.num_bits < 1 or self.num_bits % self.num_codebooks:
            raise ValueError(
                f"num_bits {self.num_bits} must be a positive multiple of num_codebooks "
                f"{self.num_codebooks}"
            )
        if self.num_bits // self.num_codebooks > _MAX_INDEX_BITS:
            raise ValueError(
                f"num_bits {self.num_bits} over num_codebooks {self.num_codebooks} exceeds "
                f"{_MAX_INDEX_BITS} bits an index"
            )
        if not 1 <= self.group_bits <= _MAX_GROUP_BITS:
            raise ValueError(
                f"group_bits must lie in [1, {_MAX_GROUP_BITS}], got {self.group_bits}"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.ramp_steps < 0:
            raise ValueError(f"ramp_steps must not be negative, got {self.ramp_steps}")


@config_class
class BSQConfig(BinaryConfig):
    """Binary spherical quantization; z is normalised inside. Defaults follow the bsq-vit recipe."""

    kind: Literal["bsq"] = "bsq"


@config_class
class LFQConfig(BinaryConfig):
    """Lookup-free quantization with codes in {-1, 1}^d.

    Temperature 0.01, as published, all but counts bits: the batch entropy then sees how codes are
    used. At 1 it sees soft assignments, and far fewer codes came into use in our trials. The
    commitment keeps the unbounded latent near ±1.
    """

    kind: Literal["lfq"] = "lfq"
    temperature: float = 0.01
    commitment_weight: float = 0.25


class BinaryQuantizer(Quantizer):
    """Signs of the latent (LFQ) or of its direction divided by sqrt(d) (BSQ).

    Bits are most significant first; a bit is set where the latent is positive. Losses, in nats
    and per token: `entropy_sample`, mean over tokens of the posterior's entropy; `entropy_batch`,
    by how much the entropy of the mean posterior falls short of its maximum, summed over groups;
    `commitment`. BSQ's straight-through gradient is the identity on the unit latent (bsq-vit
    divides it by sqrt(d)).
    """

    def __init__(self, config: BSQConfig | LFQConfig) -> None:
        num_bits = config.num_bits
        self.is_spherical = isinstance(config, BSQConfig)
        index_bits = num_bits // config.num_codebooks
        super().__init__(
            num_bits,
            (2**index_bits,) * config.num_codebooks,
            loss_weights={
                "entropy_sample": config.entropy_weight,
                "entropy_batch": config.entropy_weight * config.diversity_weight,
                "commitment": config.commitment_weight,
            },
            code_norm=1.0 if self.is_spherical else math.sqrt(num_bits),
        )
        self.config = config
        self.magnitude = 1 / math.sqrt(num_bits) if self.is_spherical else 1.0
        self.entropy_scale = config.ramp_start
        shifts = torch.arange(index_bits - 1, -1, -1)
        self.register_buffer("shifts", shifts, persistent=False)
        self.shifts: Tensor

    def schedule(self, step: int, total: int) -> None:
        progress = min(1.0, step / self.config.ramp_steps) if self.config.ramp_steps else 1.0
        self.entropy_scale = self.config.ramp_start + (1 - self.config.ramp_start) * progress

    def total_loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        ramped = {
            name: value * self.entropy_scale if name.startswith("entropy") else value
            for name, value in losses.items()
        }
        return super().total_loss(ramped)

    def _quantize(self, z: Tensor) -> Quantized:
        latent = unit(z) if self.is_spherical else z
        bits = self._bits(z)
        code = self._code(bits)
        sample_entropy, batch_entropy = self._entropies(latent.reshape(-1, self.dim))
        losses = {
            "entropy_sample": sample_entropy,
            "entropy_batch": self.dim * math.log(2) - batch_entropy,
            "commitment": F.mse_loss(latent, code),
        }
        return Quantized(straight_through(code, latent), self._pack(bits), code, losses, {})

    def _encode(self, z: Tensor) -> Tensor:
        return self._pack(self._bits(z))

    def _decode(self, indices: Tensor) -> Tensor:
        bits = indices.unsqueeze(-1) >> self.shifts & 1
        return self._code(rearrange(bits, "... g b -> ... (g b)"))

    def _bits(self, z: Tensor) -> Tensor:
        return (z > 0).long()

    def _code(self, bits: Tensor) -> Tensor:
        return (2 * bits - 1) * self.magnitude

    def _pack(self, bits: Tensor) -> Tensor:
        grouped = rearrange(bits, "... (g b) -> ... g b", g=self.num_codebooks)
        return (grouped << self.shifts).sum(-1)

    def _entropies(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Mean entropy per token and entropy of the mean over all processes; latent (N, D)."""
        # softmax(2 z.c / T) over the two values of one bit: the logit is 4 |c_i| z_i / T.
        logits = 4 * self.magnitude / self.config.temperature * latent
        size = logits.abs()
        sample = (F.softplus(-size) + size * torch.sigmoid(-size)).sum(-1).mean()
        num_groups = math.ceil(self.dim / self.config.group_bits)
        groups = torch.sigmoid(logits).tensor_split(num_groups, dim=-1)
        batch = [_entropy(self.reduce_mean(_vertices(group).mean(0))) for group in groups]
        return sample, torch.stack(batch).sum()


def _vertices(set_probability: Tensor) -> Tensor:
    """Probabilities of all 2^b vertices, most significant bit first, from those of bits (N, b)."""
    vertices = torch.ones_like(set_probability[:, :1])
    for bit in set_probability.split(1, dim=-1):
        vertices = (vertices.unsqueeze(-1) * torch.stack([1 - bit, bit], -1)).flatten(1)
    return vertices  # (N, 2^b)


def _entropy(probabilities: Tensor) -> Tensor:
    # The floor only keeps the logarithm's gradient finite where a probability underflowed to zero.
    return -(probabilities * probabilities.clamp_min(1e-30).log()).sum()

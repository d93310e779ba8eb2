"""Token pyramids: what crosses from the tokenizer to the generator.

A `TokenSpec` describes a pyramid with plain numbers; a `TokenPyramid` is one batch of tokens with
its spec. Neither knows how the tokens were made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenSpec:
    """Static description of a pyramid.

    Args:
        scales: side of each square scale, strictly increasing; the last equals `latent_size`.
        codebook_sizes: number of codes of each of the G codebooks of a token.
        code_dim: channels C of a code, of the latent, and of the generator's input.
        latent_size: side of the latent grid.

    Raises:
        ValueError: scales that do not increase, do not end at `latent_size`, or sizes below 1.
    """

    scales: tuple[int, ...]
    codebook_sizes: tuple[int, ...]
    code_dim: int
    latent_size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        object.__setattr__(self, "codebook_sizes", tuple(self.codebook_sizes))
        rising = all(a < b for a, b in zip(self.scales, self.scales[1:], strict=False))
        if not self.scales or self.scales[0] < 1 or not rising:
            raise ValueError(f"scales must be positive and strictly increasing, got {self.scales}")
        if self.scales[-1] != self.latent_size:
            raise ValueError(
                f"scales must end at latent_size {self.latent_size}, "
                f"got last scale {self.scales[-1]}"
            )
        if not self.codebook_sizes or min(self.codebook_sizes) < 1 or self.code_dim < 1:
            raise ValueError(
                f"codebook_sizes and code_dim must be positive, got {self.codebook_sizes} "
                f"and {self.code_dim}"
            )

    @property
    def num_codebooks(self) -> int:
        """G, the number of indices of one token."""
        return len(self.codebook_sizes)

    @property
    def num_scales(self) -> int:
        return len(self.scales)

    @property
    def scale_lengths(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(side * side for side in self.scales)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First flat position of each scale, then L; `num_scales + 1` numbers."""
        ends = [0]
        for length in self.scale_lengths:
            ends.append(ends[-1] + length)
        return tuple(ends)

    @property
    def length(self) -> int:
        """L, the number of tokens of an image."""
        return self.offsets[-1]

    @property
    def bits_per_token(self) -> float:
        """Sum of log2 of the codebook sizes: the rate without entropy coding."""
        return sum(math.log2(size) for size in self.codebook_sizes)

    @property
    def bits_per_image(self) -> float:
        return self.length * self.bits_per_token

    def scale_slice(self, scale: int) -> slice:
        """Flat positions of one scale."""
        return slice(self.offsets[scale], self.offsets[scale + 1])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, repr=False)
class TokenPyramid:
    """All scales' indices of a batch: `indices` int64 `(B, L, G)`, coarse to fine, rows row-major.

    Raises:
        ValueError: shape or dtype that does not fit the spec. Ranges are checked by `validate`.
    """

    indices: Tensor
    spec: TokenSpec

    def __post_init__(self) -> None:
        expected = (self.spec.length, self.spec.num_codebooks)
        if self.indices.ndim != 3 or tuple(self.indices.shape[1:]) != expected:
            raise ValueError(
                f"indices must be (B, L, G) = (B, {expected[0]}, {expected[1]}), "
                f"got {tuple(self.indices.shape)}"
            )
        if self.indices.dtype != torch.int64:
            raise ValueError(f"indices must be int64, got {self.indices.dtype}")

    def __len__(self) -> int:
        return self.indices.shape[0]

    def __repr__(self) -> str:
        scales, sizes = self.spec.scales, self.spec.codebook_sizes
        return (
            f"TokenPyramid({len(self)} images, {self.spec.length} tokens on scales {scales}, "
            f"codebooks {sizes}, {self.indices.device})"
        )

    def scale(self, scale: int) -> Tensor:
        """Indices of one scale, `(B, n_k, G)`."""
        return self.indices[:, self.spec.scale_slice(scale)]

    def to(self, device: torch.device | str) -> TokenPyramid:
        return TokenPyramid(self.indices.to(device), self.spec)

    def validate(self) -> None:
        """Raises ValueError when an index lies outside its codebook (reads the device)."""
        sizes = torch.tensor(self.spec.codebook_sizes, device=self.indices.device)
        if bool(((self.indices < 0) | (self.indices >= sizes)).any()):
            low, high = int(self.indices.min()), int(self.indices.max())
            raise ValueError(
                f"token indices must lie in [0, {self.spec.codebook_sizes}), got [{low}, {high}]"
            )

    @classmethod
    def from_scales(cls, scales: Sequence[Tensor], spec: TokenSpec) -> TokenPyramid:
        """Joins per-scale indices `(B, n_k, G)`, coarse to fine."""
        return cls(torch.cat(list(scales), dim=1), spec)

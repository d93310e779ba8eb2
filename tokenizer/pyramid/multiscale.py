"""The multiscale residual pyramid: a latent map becomes one token map per scale, coarse to fine.

At scale k the running residual is brought down to the k-th grid, quantized, scaled by
the gain of that scale, interpolated back to the latent grid, smoothed by a phi convolution if there
are any, and subtracted (VAR, arXiv 2404.02905, algorithm 1). The quantizer is any `Quantizer`.

Shapes: B batch, C code channels, S latent side, n_k = scales[k]^2, G codebooks of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from lambda24.common.config import config_class
from lambda24.tokenizer.pyramid.phi import Phi, phi_index
from lambda24.tokenizer.pyramid.resampling import Resampling, resample
from lambda24.tokenizer.pyramid.scales import resolve_scales
from lambda24.tokenizer.quantizers import Quantizer
from lambda24.tokenizer.tokens import TokenPyramid, TokenSpec
from lambda24.tokenizer.usage import batch_usage

Replacement = Callable[[int, Tensor], Tensor]


@config_class
class PyramidConfig:
    """Scales, how maps move between them and what a unit code weighs at each.

    Unit codes cannot shrink a residual below about 0.64 however many scales follow, so the latent
    is put on a sphere of a known `radius` and every scale owns a gain. `radius=None` leaves the
    encoder's norm alone.

    Args:
        scales: sides of the grids, coarse to fine, or the name of a schedule in `SCHEDULES`.
        down: how the residual reaches a coarser grid.
        up: how codes reach the latent grid; VAR takes "bicubic", Λ24-SQ "bilinear".
        next_inputs: how the sum so far reaches the next grid as the generator's input; VAR takes
            "area". Λ24-SQ's models are trained and sampled with "bilinear".
        num_phis: 3x3 convolutions after `up`, shared among neighbouring scales: 1 is one for all,
            the number of scales one for each, VAR's is 4. None has none, as Λ24-SQ. Gains multiply
            codes before them: the gain sizes what the quantizer sees, phi shapes what it leaves.
    """

    scales: Annotated[tuple[int, ...], BeforeValidator(resolve_scales)]
    down: Resampling = "area"
    up: Literal["bilinear", "bicubic"] = "bilinear"
    next_inputs: Literal["area", "bilinear"] = "area"
    num_phis: Annotated[int, Field(ge=1)] | None = None
    radius: float | None = 3.0
    gain: Literal["none", "fixed", "learned"] = "learned"
    initial_gains: tuple[float, ...] | None = None
    commitment_weight: float = 0.1

    def __post_init__(self) -> None:
        if self.radius is not None and self.radius <= 0:
            raise ValueError(f"radius must be positive, got {self.radius}")
        if self.num_phis is not None and self.num_phis > len(self.scales):
            raise ValueError(
                f"num_phis must be at most the number of scales {len(self.scales)}, "
                f"got {self.num_phis}"
            )
        if self.initial_gains is None:
            return
        if self.gain == "none":
            raise ValueError(f"initial_gains {self.initial_gains} have no use with gain='none'")
        if len(self.initial_gains) != len(self.scales) or min(self.initial_gains) <= 0:
            raise ValueError(
                f"initial_gains must be {len(self.scales)} positive numbers, one a scale of "
                f"{self.scales}, got {self.initial_gains}"
            )


@dataclass(frozen=True)
class PyramidState:
    """A pyramid under construction: `latent` (B, C, S, S) after the first `scale` scales.

    `next_inputs` (B, n_scale, C) is what the generator sees for the next scale, None at the end.
    """

    latent: Tensor
    scale: int
    next_inputs: Tensor | None


@dataclass(frozen=True)
class PyramidQuantized:
    """`z_q` (B, C, S, S) with the straight-through gradient; tokens; weighted loss; stats.

    `prefix_z_q` is the same for each image's first few scales, when they were asked for.
    """

    z_q: Tensor
    prefix_z_q: Tensor | None
    tokens: TokenPyramid
    loss: Tensor
    stats: dict[str, Tensor]


class MultiScaleQuantizer(nn.Module):
    """Residual quantization of `(B, C, S, S)` latents over a list of grids, in fp32.

    `encode`, `accumulate` and `next_scale_inputs` run the same operations in the same order, so
    teacher forcing and step-by-step decoding agree bit for bit.

    The decoder's gradient goes straight through to the latent, whatever the quantizer's estimator;
    soft or rotated gradients of a quantizer reach the encoder through its own losses.
    """

    def __init__(self, config: PyramidConfig, quantizer: Quantizer) -> None:
        super().__init__()
        self.config = config
        self.quantizer = quantizer
        self.spec = TokenSpec(
            scales=config.scales,
            codebook_sizes=tuple(quantizer.codebook_sizes),
            code_dim=quantizer.dim,
            latent_size=config.scales[-1],
        )
        self.phis = nn.ModuleList(Phi(quantizer.dim) for _ in range(config.num_phis or 0))
        start = torch.tensor(config.initial_gains or self.default_gains()).log()
        if config.gain == "learned":
            self.log_gains = nn.Parameter(start)
            self.log_gains.no_weight_decay = True  # type: ignore[attr-defined]
        else:
            self.register_buffer("log_gains", start)

    def default_gains(self) -> tuple[float, ...]:
        """A code times its gain is two thirds of the radius long at first, one third in the end.

        It falls geometrically from the coarsest scale to the finest.
        """
        count = len(self.config.scales)
        if self.config.gain == "none":
            return (1.0,) * count
        radius = (self.config.radius or 1.0) / (self.quantizer.code_norm or 1.0)
        return tuple(radius * (2 / 3) * 0.5 ** (k / max(1, count - 1)) for k in range(count))

    def normalize(self, latent: Tensor) -> Tensor:
        """Puts each position of a `(B, C, S, S)` latent on the sphere of the configured radius."""
        latent = latent.float()
        if self.config.radius is None:
            return latent
        return self.config.radius * F.normalize(latent, dim=1, eps=1e-6)

    def forward(
        self, latent: Tensor, num_kept: Tensor | None = None, prefix: Tensor | None = None
    ) -> PyramidQuantized:
        """Quantizes an encoder's output `(B, C, S, S)` for training.

        Args:
            num_kept: (B,) int64, how many scales of each image `z_q` sums (scale dropout); None
                keeps all. Tokens and losses are those of all scales.
            prefix: (B,) int64, how many scales of each image `prefix_z_q` sums.
        """
        self._check(latent)
        with torch.autocast(latent.device.type, enabled=False):
            target = self.normalize(latent)
            f_hat = kept = begun = torch.zeros_like(target)
            indices, stats = [], {}
            loss = target.new_zeros(())
            for k, side in enumerate(self.config.scales):
                # The residual keeps its gradient: a quantizer's own losses reach the encoder.
                residual = resample(target - f_hat.detach(), side, self.config.down)
                quantized = self.quantizer(_to_tokens(residual) / self.gain(k).detach())
                share = self.spec.scale_lengths[k] / self.spec.length
                loss = loss + share * self.quantizer.total_loss(quantized.losses)
                f_hat = f_hat + self._up(quantized.code, k)
                kept = _select(num_kept, k, f_hat, kept)
                begun = _select(prefix, k, f_hat, begun)
                indices.append(quantized.indices)
                loss = loss + self._prefix_loss(f_hat, target) / len(self.config.scales)
                stats[f"residual_norm_{k}"] = (target - f_hat).detach().norm(dim=1).mean()
                stats |= {f"{name}_{k}": value for name, value in batch_usage(indices[k]).items()}
            # Value f_hat; identity gradient to the latent, direct gradient to gains and codes.
            path = target - target.detach()
            tokens = TokenPyramid.from_scales(indices, self.spec)
            prefix_z_q = None if prefix is None else begun + path
            return PyramidQuantized(kept + path, prefix_z_q, tokens, loss, stats)

    def _prefix_loss(self, f_hat: Tensor, target: Tensor) -> Tensor:
        """Pulls gains (and learned codes) to the latent and, lightly, the latent to its code."""
        fit = F.mse_loss(f_hat, target.detach())
        return fit + self.config.commitment_weight * F.mse_loss(f_hat.detach(), target)

    @torch.no_grad()
    def encode(self, latent: Tensor, replace: Replacement | None = None) -> TokenPyramid:
        """Tokens of an encoder's output `(B, C, S, S)`; changes no state.

        Args:
            replace: given a scale and its tokens `(B, n_k, G)`, returns those to go on with: later
                scales quantize what they leave, and they are what is returned.
        """
        self._check(latent)
        with torch.autocast(latent.device.type, enabled=False):
            target = self.normalize(latent)
            state = self.initial_state(target.shape[0], target.device)
            scales = []
            for k in range(self.spec.num_scales):
                found = self.encode_next(target, state)
                scales.append(found if replace is None else replace(k, found))
                state = self.accumulate(state, scales[-1])
        return TokenPyramid.from_scales(scales, self.spec)

    @torch.no_grad()
    def encode_next(self, target: Tensor, state: PyramidState) -> Tensor:
        """Tokens `(B, n_k, G)` of the next scale: what the state lacks of a normalized latent."""
        with torch.autocast(target.device.type, enabled=False):
            side = self.config.scales[state.scale]
            residual = resample(target - state.latent, side, self.config.down)
            return self.quantizer.encode(_to_tokens(residual) / self.gain(state.scale))

    def initial_state(
        self,
        batch_size: int,
        device: torch.device | str,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> PyramidState:
        """Nothing decoded yet; the first scale's inputs are zeros. Sums are computed in `dtype`."""
        shape = (batch_size, self.spec.code_dim, *(self.spec.latent_size,) * 2)
        latent = torch.zeros(shape, dtype=dtype, device=device)
        return PyramidState(latent, 0, self._next_inputs(latent, 0))

    def accumulate(self, state: PyramidState, scale_tokens: Tensor) -> PyramidState:
        """Adds one scale's tokens `(B, n_k, G)` to the state.

        Raises:
            ValueError: all scales are done, or the tokens are not those of the next scale.
        """
        k = state.scale
        if k >= self.spec.num_scales:
            raise ValueError(f"all {self.spec.num_scales} scales are decoded already, got one more")
        expected = (state.latent.shape[0], self.spec.scale_lengths[k], self.spec.num_codebooks)
        if tuple(scale_tokens.shape) != expected:
            raise ValueError(
                f"tokens of scale {k} must be {expected}, got {tuple(scale_tokens.shape)}"
            )
        with torch.autocast(state.latent.device.type, enabled=False):
            codes = self.quantizer.decode(scale_tokens).to(state.latent.dtype)
            latent = state.latent + self._up(codes, k)
            return PyramidState(latent, k + 1, self._next_inputs(latent, k + 1))

    def states(self, tokens: TokenPyramid) -> Iterator[PyramidState]:
        """The state before the first scale and after each one."""
        state = self.initial_state(len(tokens), tokens.indices.device)
        yield state
        for k in range(self.spec.num_scales):
            state = self.accumulate(state, tokens.scale(k))
            yield state

    def gain(self, scale: int) -> Tensor:
        """Positive scalar that multiplies the codes of a scale."""
        return self.log_gains[scale].exp()

    def _up(self, codes: Tensor, scale: int) -> Tensor:
        """Codes `(B, n_k, C)` to their contribution `(B, C, S, S)`."""
        side = self.config.scales[scale]
        maps = rearrange(self.gain(scale) * codes, "b (h w) c -> b c h w", h=side)
        maps = resample(maps, self.spec.latent_size, self.config.up)
        if not self.phis:
            return maps
        index = phi_index(scale, self.spec.num_scales, len(self.phis))
        contribution: Tensor = self.phis[index](maps)
        return contribution

    def _next_inputs(self, latent: Tensor, scale: int) -> Tensor | None:
        if scale >= self.spec.num_scales:
            return None
        side = self.config.scales[scale]
        # Fine to coarse like the residual, but bilinear as published: without a low-pass filter.
        return _to_tokens(resample(latent, side, self.config.next_inputs, antialias=False))

    def _check(self, latent: Tensor) -> None:
        size = self.spec.latent_size
        if tuple(latent.shape[1:]) != (self.spec.code_dim, size, size):
            raise ValueError(
                f"latent must be (B, {self.spec.code_dim}, {size}, {size}), "
                f"got {tuple(latent.shape)}"
            )


def _select(count: Tensor | None, scale: int, latest: Tensor, before: Tensor) -> Tensor:
    """The latest sum for images whose `count` (B,) reaches beyond `scale`; None is all images."""
    if count is None:
        return latest
    return torch.where((count > scale)[:, None, None, None], latest, before)


def _to_tokens(maps: Tensor) -> Tensor:
    return rearrange(maps, "b c h w -> b (h w) c")

"""What quantizers with an explicit table of codes share: look-up, losses, estimators, k-means."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambda24.tokenizer.lattices.codes import nearest_rows
from lambda24.tokenizer.quantizers.base import Quantizer, straight_through, unit

Estimator = Literal["straight_through", "rotation"]


def check_table(dim: int, codebook_size: int) -> None:
    """Raises ValueError unless both numbers of a table of codes are positive."""
    if dim < 1 or codebook_size < 1:
        raise ValueError(f"dim and codebook_size must be positive, got {dim} and {codebook_size}")


def check_revival(threshold: float | None, decay: float = 0.0) -> None:
    """Raises ValueError unless threshold (where there is one) and decay are shares below 1."""
    if threshold is not None and not 0 < threshold < 1:
        raise ValueError(f"revival_threshold must lie in (0, 1), got {threshold}")
    if not 0 <= decay < 1:
        raise ValueError(f"revival_decay must lie in [0, 1), got {decay}")


def random_codes(num_codes: int, dim: int, seed: int) -> Tensor:
    """Normal rows `(num_codes, dim)` of unit mean square norm."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_codes, dim, generator=generator) / math.sqrt(dim)


def table_parameter(values: Tensor) -> nn.Parameter:
    """A trainable table that `common.optim.schedule.build_optimizer` does not decay."""
    parameter = nn.Parameter(values)
    parameter.no_weight_decay = True  # type: ignore[attr-defined]
    return parameter


@torch.no_grad()
def data_codes(
    quantizer: Quantizer, z: Tensor, *, iterations: int, seed: int, spherical: bool = False
) -> Tensor:
    """k-means centres, one per code, of the latents `z (..., d)` of all processes."""
    rows = quantizer.gather(z.detach().float().flatten(0, -2))
    rows = unit(rows) if spherical else rows
    size = quantizer.codebook_sizes[0]
    centres = kmeans(rows, size, iterations=iterations, seed=seed, spherical=spherical)
    # Sums over duplicates may differ in the last bit between devices; the mean is one and the same.
    return quantizer.reduce_mean(centres)


@torch.no_grad()
def nearest_code(z: Tensor, table: Tensor) -> Tensor:
    """Row of `table (K, d)` nearest to each `z (..., d)` by distance; ties to the lowest row."""
    # argmin |z - e|² = argmax z.e - |e|²/2: the second term rides along as one more channel.
    bias = table.square().sum(-1, keepdim=True) / -2
    extended = torch.cat([z, torch.ones_like(z[..., :1])], dim=-1)
    return nearest_rows(extended, torch.cat([table, bias], dim=-1))


def codebook_losses(path: Tensor, code: Tensor) -> dict[str, Tensor]:
    """VQ-VAE's two terms, means over elements: codes towards latents and latents towards codes."""
    return {
        "codebook": F.mse_loss(code, path.detach()),
        "commitment": F.mse_loss(path, code.detach()),
    }


def estimate(estimator: Estimator, code: Tensor, path: Tensor) -> Tensor:
    """The value of `code` with a gradient to `path`: the identity's or a rotation's."""
    if estimator == "straight_through":
        return straight_through(code, path)
    return straight_through(code, rotated(path, code.detach()))


def rotated(path: Tensor, code: Tensor) -> Tensor:
    """`path` turned and scaled onto `code`, both held fixed (rotation trick, arXiv 2410.06424)."""
    source, target = unit(path.detach()), unit(code)
    middle = unit(source + target)
    # R = I - 2 m mᵀ + 2 target sourceᵀ, the rotation in the plane of source and target.
    turned = (
        path
        - 2 * (path * middle).sum(-1, keepdim=True) * middle
        + 2 * (path * source).sum(-1, keepdim=True) * target
    )
    length = path.detach().norm(dim=-1, keepdim=True)
    return turned * code.norm(dim=-1, keepdim=True) / length.clamp_min(1e-12)


@torch.no_grad()
def kmeans(
    z: Tensor, num_codes: int, *, iterations: int, seed: int, spherical: bool = False
) -> Tensor:
    """Centres `(num_codes, d)` of rows `z (N, d)`: random rows, then Lloyd's iterations.

    Empty clusters keep their centre. With fewer rows than codes, rows repeat with a little noise.
    `spherical` keeps centres on the unit sphere.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(z), generator=generator)
    repeats = -(-num_codes // len(z))
    centres = z[order.repeat(repeats)[:num_codes].to(z.device)]
    if repeats > 1:
        noise = torch.randn(centres.shape, generator=generator).to(z) * z.std() * 0.01
        noise[: len(z)] = 0
        centres = centres + noise
    for _ in range(iterations):
        centres = unit(centres) if spherical else centres
        counts, sums = assignment_sums(z, nearest_code(z, centres), num_codes)
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), centres)
    return unit(centres) if spherical else centres


def assignment_sums(z: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """How many rows of `z (N, d)` chose each code `(K,)` and their sum `(K, d)`."""
    counts = torch.bincount(indices, minlength=num_codes).to(z.dtype)
    sums = z.new_zeros((num_codes, z.shape[-1])).index_add_(0, indices, z)
    return counts, sums

"""Point sets of any size on the unit sphere: random directions, generalised Fibonacci points."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor


def _check(dim: int, size: int) -> None:
    if dim < 2 or size < 1:
        raise ValueError(f"dim must be at least 2 and size positive, got {dim} and {size}")


def random_sphere(dim: int, size: int, seed: int) -> Tensor:
    """Normalised Gaussian rows `(size, dim)` float32, the same for a seed on every machine.

    Raises:
        ValueError: dim below 2 or size below 1.
    """
    _check(dim, size)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(size, dim, generator=generator, dtype=torch.float64)
    return (rows / rows.norm(dim=1, keepdim=True)).float()


def _generalised_golden_ratio(count: int) -> float:
    """The root above 1 of r^(count + 1) = r + 1: the golden ratio for 1, the plastic one for 2."""
    ratio = 2.0
    for _ in range(100):
        ratio = (1 + ratio) ** (1 / (count + 1))
    return ratio


def fibonacci_sphere(dim: int, size: int) -> Tensor:
    """A generalised spherical Fibonacci point set, `(size, dim)` float32.

    An equidistributed sequence of the cube [0, 1)^(dim-1), carried to the sphere by the inverse
    distribution function of each angle. The first cube coordinate is (n + 1/2) / size; the others
    are multiples of powers of the generalised golden ratio modulo 1 (Roberts 2018). In three
    dimensions it is the Fibonacci lattice, in two the regular polygon.

    Raises:
        ValueError: dim below 2 or size below 1.
    """
    _check(dim, size)
    number = np.arange(size, dtype=np.float64)
    cube = [(number + 0.5) / size]
    if dim > 2:
        ratio = _generalised_golden_ratio(dim - 2)
        cube += [number * ratio ** -(k + 1) % 1 for k in range(dim - 2)]
    rows = np.empty((size, dim))
    radius = np.ones(size)
    for k in range(dim - 2):
        # The polar angle has density sin^(dim-2-k): (1 + cos) / 2 is Beta(h, h), h = (dim-1-k) / 2.
        half = (dim - 1 - k) / 2
        cosine = 2 * betaincinv(half, half, cube[k]) - 1
        rows[:, k] = radius * cosine
        radius = radius * np.sqrt(np.clip(1 - cosine**2, 0, None))
    azimuth = 2 * math.pi * cube[dim - 2]
    rows[:, dim - 2], rows[:, dim - 1] = radius * np.cos(azimuth), radius * np.sin(azimuth)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(rows.astype(np.float32))

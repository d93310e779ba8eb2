"""First shells of A2, D4, E8, K12 and BW16: the best known lattice kissing configurations.

Coordinates of Conway & Sloane, Sphere Packings, Lattices and Groups, chapter 4, scaled to unit
norm, rows in the order of the loops below. The Leech lattice's shell has a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor


def _unit(rows: np.ndarray) -> Tensor:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy((rows / norms).astype(np.float32))


def _pairs(dim: int, value: float) -> np.ndarray:
    """All (±value, ±value, 0, ...)."""
    rows = []
    for (i, j), (s, t) in product(combinations(range(dim), 2), product((1, -1), repeat=2)):
        row = np.zeros(dim)
        row[i], row[j] = s * value, t * value
        rows.append(row)
    return np.array(rows)


def a2() -> Tensor:
    """The hexagon, `(6, 2)`."""
    angles = np.arange(6) * np.pi / 3
    return _unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))


def d4() -> Tensor:
    """The 24-cell, `(24, 4)`: (±1, ±1, 0, 0)."""
    return _unit(_pairs(4, 1.0))


def e8() -> Tensor:
    """The roots of E8, `(240, 8)`: (±2², 0⁶), and ±1⁸ with an even number of minus signs."""
    signs = np.array([row for row in product((1, -1), repeat=8) if np.prod(row) > 0])
    return _unit(np.concatenate([_pairs(8, 2.0), signs]))


def k12() -> Tensor:
    """The Coxeter-Todd lattice's shell, `(756, 12)`, from its 3-base over the Eisenstein integers.

    With θ = √-3 and ω a cube root of unity: (±θωᵃ, ∓θωᵇ, 0⁴), and ±(ωᵃ¹, ..., ωᵃ⁶) where 3 divides
    Σa. Complex coordinate k is real coordinates 2k and 2k + 1.
    """
    omega, theta = np.exp(2j * np.pi / 3), 1j * np.sqrt(3)
    rows = []
    for (i, j), sign, a, b in product(combinations(range(6), 2), (1, -1), range(3), range(3)):
        row = np.zeros(6, dtype=complex)
        row[i], row[j] = sign * theta * omega**a, -sign * theta * omega**b
        rows.append(row)
    for sign, powers in product((1, -1), product(range(3), repeat=6)):
        if sum(powers) % 3 == 0:
            rows.append(sign * omega ** np.array(powers))
    complex_rows = np.array(rows)
    return _unit(np.stack([complex_rows.real, complex_rows.imag], axis=2).reshape(-1, 12))


def bw16() -> Tensor:
    """The Barnes-Wall lattice's shell, `(4320, 16)`.

    (±2², 0¹⁴), and ±1 with an even number of minus signs on a word of weight 8 of the Reed-Muller
    code RM(1, 4), scaled alike.
    """
    points = np.arange(16)
    signs = np.array([row for row in product((1, -1), repeat=8) if np.prod(row) > 0])
    octads = []
    for mask, constant in product(range(1, 16), (0, 1)):
        support = [k for k in points if (bin(k & mask).count("1") + constant) % 2]
        rows = np.zeros((len(signs), 16))
        rows[:, support] = signs
        octads.append(rows)
    return _unit(np.concatenate([_pairs(16, 2.0), *octads]))


SHELLS: dict[str, Callable[[], Tensor]] = {"a2": a2, "d4": d4, "e8": e8, "k12": k12, "bw16": bw16}

from __future__ import annotations

import pytest
import torch

from lambda24.tokenizer.lattices.shells import SHELLS

# Kissing numbers, and how many points are at 60 degrees from each point.
KNOWN = {"a2": (2, 6, 2), "d4": (4, 24, 8), "e8": (8, 240, 56), "k12": (12, 756, 82)}
KNOWN["bw16"] = (16, 4320, 280)


@pytest.mark.parametrize("name", sorted(SHELLS))
def test_shell(name: str) -> None:
    dim, size, neighbours = KNOWN[name]
    points = SHELLS[name]().double()
    assert points.shape == (size, dim)
    products = points @ points.T
    assert products.diagonal().sub(1).abs().max() < 1e-6
    products.fill_diagonal_(0)
    assert products.max().item() == pytest.approx(0.5, abs=1e-6)
    assert ((products > 0.499).sum(1) == neighbours).all()
    assert (products.min(1).values < -1 + 1e-6).all()  # contains -c


@pytest.mark.parametrize("name", sorted(SHELLS))
def test_shell_is_a_spherical_three_design(name: str) -> None:
    points = SHELLS[name]().double()
    assert points.mean(0).abs().max() < 1e-6
    second = points.T @ points / len(points)
    torch.testing.assert_close(
        second, torch.eye(len(second)).double() / len(second), atol=1e-6, rtol=0
    )

from __future__ import annotations

import math

import pytest
import torch

from lambda24.tokenizer.lattices.spheres import fibonacci_sphere, random_sphere


def test_random_points_depend_on_the_seed_only() -> None:
    points = random_sphere(7, 300, seed=3)
    assert points.shape == (300, 7)
    assert points.norm(dim=1).sub(1).abs().max() < 1e-6
    assert torch.equal(points, random_sphere(7, 300, seed=3))
    assert not torch.equal(points, random_sphere(7, 300, seed=4))


@pytest.mark.parametrize("dim", [2, 3, 5, 24])
def test_fibonacci_points_are_uniform(dim: int) -> None:
    points = fibonacci_sphere(dim, 4000).double()
    assert points.norm(dim=1).sub(1).abs().max() < 1e-6
    assert points.mean(0).abs().max() < 0.02
    second = points.T @ points / len(points)
    assert (second * dim - torch.eye(dim)).abs().max() < 0.2
    fourth = points.pow(4).mean(0) * dim * (dim + 2) / 3  # 1 for the uniform distribution
    assert fourth.sub(1).abs().max() < 0.2


def test_fibonacci_in_the_plane_is_a_regular_polygon() -> None:
    points = fibonacci_sphere(2, 12).double()
    steps = (points - points.roll(1, 0)).norm(dim=1)
    torch.testing.assert_close(steps, torch.full((12,), 2 * math.sin(math.pi / 12)).double())


def test_fibonacci_in_three_dimensions_is_the_classical_one() -> None:
    points = fibonacci_sphere(3, 1000).double()
    height = 1 - 2 * (torch.arange(1000) + 0.5) / 1000
    torch.testing.assert_close(points[:, 0].abs(), height.abs().double(), atol=1e-5, rtol=0)
    products = (points @ points.T).fill_diagonal_(-1)
    # Classical value of sqrt(size) * minimum chord: 3.09 away from the poles.
    nearest = (2 - 2 * products.amax(1)).sqrt() * math.sqrt(1000)
    assert 3.0 < nearest.median() < 3.6
    assert nearest.min() > 2


@pytest.mark.parametrize(("dim", "size"), [(1, 5), (3, 0)])
def test_impossible_sizes_are_refused(dim: int, size: int) -> None:
    with pytest.raises(ValueError, match="dim must be at least 2"):
        random_sphere(dim, size, seed=0)
    with pytest.raises(ValueError, match="dim must be at least 2"):
        fibonacci_sphere(dim, size)

"""Moves and bends against SciPy's interpolation, and what decides them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

from lambda24.common.data.augmentation import (
    AFFINE_STREAM,
    BEND_STREAM,
    AugmentConfig,
    augment,
    source_places,
)
from lambda24.common.data.batches import Batch, build_loader, hash_integers, uniform_from_keys
from lambda24.common.data.dataset import load_dataset
from lambda24.common.data.settings import DataConfig

ALL = AugmentConfig(rotation=25, shift=0.1, scale=0.3, shear=0.2, elastic=0.06)
KEYS = hash_integers(torch.arange(6))


def pictures(side: int) -> Tensor:
    """Smooth noise, one picture for each key."""
    noise = np.random.default_rng(0).normal(size=(len(KEYS), 3, side, side))
    smooth = gaussian_filter(noise, (0, 0, 1.5, 1.5))
    return torch.from_numpy((128 + 300 * smooth).clip(0, 255).astype(np.uint8))


def symmetric(stream: int, shape: tuple[int, ...]) -> np.ndarray:
    """(6, *shape) in [-1, 1)."""
    return 2 * uniform_from_keys(KEYS, stream, shape).double().numpy() - 1


Rule = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[Any, Any]]
# Where a pixel (x, y) of a picture 2 wide takes its value; `u` are the sample's five draws.
RULES: dict[str, tuple[dict[str, float], Rule]] = {
    "rotation": (
        {"rotation": 40.0},
        lambda x, y, u: (
            x * math.cos(math.radians(40 * u[0])) - y * math.sin(math.radians(40 * u[0])),
            x * math.sin(math.radians(40 * u[0])) + y * math.cos(math.radians(40 * u[0])),
        ),
    ),
    "scale": ({"scale": 0.5}, lambda x, y, u: (x / 1.5 ** u[1], y / 1.5 ** u[1])),
    "shear": ({"shear": 0.3}, lambda x, y, u: (x + 0.3 * u[2] * y, y)),
    "shift": ({"shift": 0.2}, lambda x, y, u: (x - 0.4 * u[3], y - 0.4 * u[4])),
}


def taken(images: Tensor, x: np.ndarray, y: np.ndarray, number: int) -> np.ndarray:
    """Bilinear values of one picture at (x, y) in [-1, 1], the edge's beyond it."""
    side = images.shape[-1]
    rows, columns = ((value + 1) * side / 2 - 0.5 for value in (y, x))
    channels = [
        map_coordinates(channel, [rows, columns], order=1, mode="nearest")
        for channel in images[number].double().numpy()
    ]
    return np.floor(np.stack(channels) + 0.5)


def grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    centres = (np.arange(side) + 0.5) * 2 / side - 1
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return x, y


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("side", [9, 16])
def test_each_move_is_what_its_formula_says(name: str, side: int) -> None:
    strengths, rule = RULES[name]
    images, draws = pictures(side), symmetric(AFFINE_STREAM, (5,))
    found = augment(images, KEYS, AugmentConfig(**strengths)).numpy()  # type: ignore[arg-type]
    assert np.abs(images.numpy() - found.astype(int)).mean() > 5
    for number in range(len(KEYS)):
        x, y = rule(*grid(side), draws[number])
        expected = taken(images, np.asarray(x), np.asarray(y), number)
        assert np.abs(found[number] - expected).max() <= 1  # ties of the rounding


def test_moves_turn_then_scale_then_shear_about_the_shifted_middle() -> None:
    side, strengths = 16, AugmentConfig(rotation=40, shift=0.2, scale=0.5, shear=0.3)
    images, draws = pictures(side), symmetric(AFFINE_STREAM, (5,))
    found = augment(images, KEYS, strengths).numpy()
    for number in range(len(KEYS)):
        x, y = grid(side)
        for name in ("shift", "rotation", "scale", "shear"):
            x, y = RULES[name][1](x, y, draws[number])
        assert np.abs(found[number] - taken(images, x, y, number)).max() <= 1


@pytest.mark.parametrize("cells", [1, 3, 4])
def test_bends_are_cubic_splines(cells: int) -> None:
    """SciPy's B-splines on uniform knots, in both directions."""
    side, strength = 16, 0.1
    count = cells + 3
    points = symmetric(BEND_STREAM, (count, count, 2)) * 2 * strength
    knots = np.arange(-3, cells + 4)
    place = (np.arange(side) + 0.5) * cells / side
    basis = BSpline(knots, np.eye(count), 3)(place)  # (S, P)
    config = AugmentConfig(elastic=strength, elastic_cells=cells)
    images, places = pictures(side), source_places(KEYS, side, config).numpy()
    found = augment(images, KEYS, config).numpy()
    for number in range(len(KEYS)):
        bend = np.einsum("ri,cj,ijd->rcd", basis, basis, points[number])
        x, y = grid(side)
        x, y = x + bend[..., 0], y + bend[..., 1]
        assert np.abs(places[number] - np.stack([x, y], -1)).max() < 1e-6
        assert np.abs(found[number] - taken(images, x, y, number)).max() <= 1
        assert 0.02 < np.abs(bend).max() <= 2 * strength


def test_no_strength_changes_nothing() -> None:
    images = pictures(16)
    assert torch.equal(augment(images, KEYS, AugmentConfig()), images)
    moved = augment(images, KEYS, ALL)
    assert all((a != b).float().mean() > 0.5 for a, b in zip(images, moved, strict=True))


def test_a_share_of_the_images_is_moved() -> None:
    keys = hash_integers(torch.arange(300))
    images = pictures(8)[:1].repeat(300, 1, 1, 1)
    moved = augment(images, keys, ALL)
    some = augment(images, keys, replace(ALL, probability=0.3))
    is_moved = (some != images).flatten(1).any(dim=1)
    assert torch.equal(some[is_moved], moved[is_moved])
    assert 60 < int(is_moved.sum()) < 120
    assert torch.equal(augment(images, keys, replace(ALL, probability=0.0)), images)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    images = pictures(17)
    whole = augment(images, KEYS, ALL)
    alone = [augment(images[i : i + 1], KEYS[i : i + 1], ALL) for i in range(len(KEYS))]
    assert torch.equal(torch.cat(alone), whole)


def batches(config: DataConfig, batch_size: int, steps: int, **place: int) -> list[Batch]:
    data = load_dataset(config, train=True)
    loader = build_loader(data, batch_size=batch_size, seed=5, **place)
    return [next(loader) for _ in range(steps)]


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_workers_and_resuming_change_no_image(workers: int) -> None:
    config = DataConfig(image_size=16, max_images=20, augment=ALL, flip=True)
    whole = batches(config, 14, 5)
    halves = [
        batches(config, 7, 5, rank=rank, world_size=2, num_workers=workers) for rank in (0, 1)
    ]
    resumed = batches(config, 14, 2, start_step=3, num_workers=workers)
    for step, batch in enumerate(whole):
        joined = torch.cat([halves[0][step].images, halves[1][step].images])
        assert torch.equal(joined, batch.images)
        if step >= 3:
            assert torch.equal(resumed[step - 3].images, batch.images)


def test_only_training_images_are_moved_and_mirrored_last() -> None:
    config = DataConfig(image_size=16, augment=ALL)
    plain = load_dataset(DataConfig(image_size=16), train=True)
    moved, held_out = load_dataset(config, train=True), load_dataset(config, train=False)
    indices = list(range(len(KEYS)))
    pixels = plain.images_uint8(indices)
    expected = augment(pixels, KEYS, ALL)
    assert torch.equal(moved.images_uint8(indices), pixels)
    assert torch.equal(moved.read(indices, KEYS).images, expected)
    assert torch.equal(held_out.read(indices, KEYS).images, held_out.images_uint8(indices))
    mirrored = load_dataset(DataConfig(image_size=16, augment=ALL, flip=True), train=True)
    pairs = zip(mirrored.read(indices, KEYS).images, expected, strict=True)
    flips = [torch.equal(found, image.flip(-1)) for found, image in pairs]
    assert 0 < sum(flips) < len(flips)

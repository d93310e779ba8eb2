"""Distances to nearest images against one pair at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lambda24.sampling.evaluation import memorization as module
from lambda24.sampling.evaluation.memorization import memorization, nearest_distances


def noise(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 6, 5), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("chunk", [1000, 4])
def test_distances_are_the_smallest_of_all_pairs(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    images, others = noise(7, seed=0), noise(11, seed=1)
    images[3] = others[10]
    expected = [
        min(np.sqrt(np.mean((a.astype(float) - b.astype(float)) ** 2)) for b in others.numpy())
        for a in images.numpy()
    ]
    found = nearest_distances(images, others)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert found[3] < 1e-5 < found[2]


def test_copies_have_a_ratio_near_zero_and_new_images_near_one() -> None:
    train, held_out = noise(40, seed=0), noise(20, seed=1)
    brighter = (train[:20].int() + 1).clamp(max=255).to(torch.uint8)
    copied = memorization(brighter, held_out, held_out, train)
    assert copied.samples <= 1
    assert copied.ratio < 0.02
    new = memorization(noise(20, seed=2), held_out, held_out, train)
    assert new.ratio == pytest.approx(1, abs=0.1)
    assert new.held_out == new.reconstructions == copied.held_out


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 6, 5\) and \(2, 3, 5, 5\)"):
        nearest_distances(noise(2, seed=0), noise(2, seed=0)[:, :, :5])

"""Whether samples are copies: how near their nearest training images are.

Distances are between pixels, so a copy that was shifted or repainted is not noticed; held-out
images show how near an image is that nobody copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1_000


@dataclass(frozen=True)
class Memorization:
    """Mean distances to the nearest training image, in grey levels of 255.

    Args:
        samples: of generated images.
        held_out: of real images that were not trained on.
        reconstructions: of the same, encoded and decoded: as smooth as samples are.
    """

    samples: float
    held_out: float
    reconstructions: float

    @property
    def ratio(self) -> float:
        """Samples against reconstructions; well below 1, samples are copies."""
        return self.samples / self.reconstructions


def memorization(
    samples: Tensor, held_out: Tensor, reconstructions: Tensor, train: Tensor
) -> Memorization:
    """Compares uint8 images `(N, 3, H, W)` of any counts with training images `(M, 3, H, W)`."""
    sets = (samples, held_out, reconstructions)
    return Memorization(*(nearest_distances(images, train).mean().item() for images in sets))


def nearest_distances(images: Tensor, others: Tensor) -> Tensor:
    """Root mean square difference of each image to the nearest of the others.

    Args:
        images: `(N, 3, H, W)` uint8.
        others: `(M, 3, H, W)` uint8.

    Returns:
        `(N,)` float64, in grey levels of 255.

    Raises:
        ValueError: images of two sizes, or none.
    """
    if images.shape[1:] != others.shape[1:] or not len(images) or not len(others):
        raise ValueError(
            f"nearest images need two sets of one size, got {tuple(images.shape)} and "
            f"{tuple(others.shape)}"
        )
    rows = images.flatten(1).double()  # exact for whole numbers, which fp32 is not
    nearest = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    for chunk in others.split(CHUNK):
        nearest = torch.minimum(nearest, torch.cdist(rows, chunk.flatten(1).double()).amin(dim=1))
    return nearest / rows.shape[1] ** 0.5

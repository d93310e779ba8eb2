"""A small classifier of real images, to count how many generated images show their label.

A support vector machine with an RBF kernel (scikit-learn) on pixels shrunk to at most 16 x 16:
seconds for a few thousand simple images such as digits; photographs need something better. Its own
accuracy on held-out real images belongs beside every figure it gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from sklearn.svm import SVC
from torch import Tensor

SIDE = 16


@dataclass(frozen=True)
class Classifier:
    """A trained support vector machine over pixels."""

    machine: Any

    def predict(self, images: Tensor) -> Tensor:
        """Labels `(N,)` int64 of uint8 images `(N, 3, H, W)`."""
        return torch.from_numpy(self.machine.predict(_pixels(images)).astype(np.int64))


def train_classifier(images: Tensor, labels: Tensor) -> Classifier:
    """Trains on real images; deterministic.

    Args:
        images: `(N, 3, H, W)` uint8.
        labels: `(N,)` int64.

    Raises:
        ValueError: images that are not uint8, other counts, or fewer than two classes.
    """
    _check(images, labels)
    if len(labels.unique()) < 2:
        raise ValueError(f"a classifier needs at least 2 classes, got {len(labels.unique())}")
    machine = SVC(C=10.0, kernel="rbf", gamma="scale")
    return Classifier(machine.fit(_pixels(images), labels.cpu().numpy()))


def label_accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    """Fraction of images `(N, 3, H, W)` uint8 whose predicted label is `labels` `(N,)`."""
    _check(images, labels)
    return float((classifier.predict(images) == labels.cpu()).double().mean())


def _check(images: Tensor, labels: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(f"need one label per image, got {len(images)} and {len(labels)}")


def _pixels(images: Tensor) -> np.ndarray:
    shrunk = images.cpu().float()
    if min(images.shape[-2:]) > SIDE:
        shrunk = F.interpolate(shrunk, size=(SIDE, SIDE), mode="area")
    pixels: np.ndarray = rearrange(shrunk / 255, "n c h w -> n (c h w)").numpy()
    return pixels

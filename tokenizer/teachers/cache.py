"""Features of a frozen teacher, kept on disk by the hash of the image they belong to.

An entry is found by the pixels themselves, so augmentation, a changed data set or another order of
samples never meet wrong features: they only miss. Worth it where the same pixels come back (no
augmentation, or a flip: two entries an image); random crops never hit and should not use it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lambda24.tokenizer.teachers.networks import Teacher

CACHE_FORMAT = 1
BLOCK_SIZE = 16
"""Images are computed in blocks of this many, so that one's features do not depend on which others
were missing: kernels round differently for other batch sizes."""


class FeatureCache:
    """One SQLite file of float16 feature maps.

    Safe to share between processes and to kill at any moment; not for network file systems, whose
    locks SQLite cannot trust.

    Args:
        folder: made if it does not exist; one file in it for each `identity`.
        identity: what the features depend on beside the pixels, as JSON types.
        shape: of one image's features.
        max_gib: nothing is added once the file has this size.

    Raises:
        ValueError: a file with features of another identity.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        shape: tuple[int, ...],
        *,
        max_gib: float,
    ) -> None:
        self.shape, self.max_bytes = shape, max_gib * 2**30
        self.is_full = False
        text = json.dumps({"format": CACHE_FORMAT, **identity, "shape": shape}, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"teacher-{name}.sqlite"
        with closing(self._connect()) as file, file:
            file.execute("PRAGMA journal_mode = WAL")
            file.execute("CREATE TABLE IF NOT EXISTS identity (id INTEGER PRIMARY KEY, text TEXT)")
            file.execute("CREATE TABLE IF NOT EXISTS features (image BLOB PRIMARY KEY, value BLOB)")
            file.execute("INSERT OR IGNORE INTO identity VALUES (0, ?)", (text,))
            (found,) = file.execute("SELECT text FROM identity").fetchone()
        if found != text:
            raise ValueError(f"{self.path} holds features of {found}, expected {text}; delete it")

    def get(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """Features of each key, float16, or None."""
        with closing(self._connect()) as file:
            query = "SELECT value FROM features WHERE image = ?"
            rows = [file.execute(query, (key,)).fetchone() for key in keys]
        return [None if row is None else self._unpack(row[0]) for row in rows]

    def put(self, keys: Sequence[bytes], values: Sequence[Tensor]) -> None:
        """Adds float16 features, unless the cache is full."""
        if self.is_full or not keys:
            return
        rows = [(key, value.numpy().tobytes()) for key, value in zip(keys, values, strict=True)]
        with closing(self._connect()) as file, file:
            (pages,) = file.execute("PRAGMA page_count").fetchone()
            (page_size,) = file.execute("PRAGMA page_size").fetchone()
            self.is_full = pages * page_size >= self.max_bytes
            if not self.is_full:
                file.executemany("INSERT OR IGNORE INTO features VALUES (?, ?)", rows)
        if self.is_full:
            warnings.warn(
                f"{self.path} has reached {self.max_bytes / 2**30:g} GiB: teacher features are "
                "read from it but no longer added",
                stacklevel=2,
            )

    def __len__(self) -> int:
        with closing(self._connect()) as file:
            (count,) = file.execute("SELECT COUNT(*) FROM features").fetchone()
        return int(count)

    def _connect(self) -> sqlite3.Connection:
        # Opened anew for each batch (50 us): nothing to close, fork or pickle.
        connection = sqlite3.connect(self.path, timeout=60)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def _unpack(self, value: bytes) -> Tensor:
        return torch.from_numpy(np.frombuffer(bytearray(value), np.float16).reshape(self.shape))


class CachedTeacher(nn.Module):
    """A teacher that remembers; its features are rounded to float16, found or computed.

    Args:
        teacher: what computes missing features.
        folder: of the cache.
        max_gib: largest size of the cache file.
    """

    def __init__(self, teacher: Teacher, folder: Path, *, max_gib: float) -> None:
        super().__init__()
        self.teacher = teacher
        shape = teacher.output_shape()
        self.cache = FeatureCache(folder, _identity(teacher), shape, max_gib=max_gib)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features (B, C, h, w) float32 of images (B, 3, H, W) in [-1, 1]."""
        keys = [_image_key(image) for image in images.cpu()]
        known = dict(zip(keys, self.cache.get(keys), strict=True))
        missing = {key: place for place, key in enumerate(keys) if known[key] is None}
        if missing:
            computed = self._compute(images[list(missing.values())])
            self.cache.put(list(missing), computed)
            known.update(zip(missing, computed, strict=True))
        found = [features for key in keys if (features := known[key]) is not None]
        return torch.stack(found).to(images.device).float()

    def output_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one image's features."""
        return self.teacher.output_shape()

    def train(self, mode: bool = True) -> CachedTeacher:
        del mode
        return super().train(False)

    def _compute(self, images: Tensor) -> list[Tensor]:
        limit = torch.finfo(torch.float16).max
        values: list[Tensor] = []
        for block in images.split(BLOCK_SIZE):
            padding = block.new_zeros(BLOCK_SIZE - len(block), *block.shape[1:])
            features = self.teacher(torch.cat([block, padding]))[: len(block)]
            values.extend(features.clamp(-limit, limit).half().cpu())
        return values


def _image_key(image: Tensor) -> bytes:
    pixels = image.float().contiguous().numpy()
    return hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=16).digest()


def _identity(teacher: Teacher) -> dict[str, Any]:
    return {
        "teacher": type(teacher).__name__,
        "layer": getattr(teacher, "layer", None),
        "size": teacher.size,
        "mean": teacher.mean.flatten().tolist(),
        "std": teacher.std.flatten().tolist(),
        "precision": teacher.precision,
        "weights": teacher.weights_hash(),
    }

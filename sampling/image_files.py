"""Images that another program made, for evaluation: a folder of files or an ADM-style npz."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from common.reference import ImageSource, TensorImages

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class FolderImages:
    """An `ImageSource` of image files of one square `size`."""

    paths: Sequence[Path]
    size: int

    def __len__(self) -> int:
        return len(self.paths)

    def images_uint8(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([self._image(self.paths[index]) for index in indices])

    def _image(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as file:
                pixels = np.array(file.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{path} is not a readable image: {error}") from error
        if pixels.shape[:2] != (self.size, self.size):
            raise ValueError(
                f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, "
                f"the reference {self.size} x {self.size}"
            )
        return rearrange(torch.from_numpy(pixels), "h w c -> c h w")


def open_images(path: str | Path, size: int) -> ImageSource:
    """Opens a folder (searched deeply, sorted by name) or an npz file of images.

    Args:
        size: side every image must have; nothing is resized silently.

    Raises:
        ValueError: nothing there, no images, or images of another size or type.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not files:
            raise ValueError(f"{path} holds no images ({', '.join(SUFFIXES)})")
        return FolderImages(files, size)
    if path.suffix == ".npz" and path.is_file():
        return TensorImages(_read_npz(path, size))
    raise ValueError(f"{path} is neither a folder of images nor an npz file")


def read_labels(path: str | Path) -> Tensor | None:
    """Class numbers `(N,)` of an npz file's images, its `arr_1`; None where there are none.

    Raises:
        ValueError: an `arr_1` that is not one integer for each image.
    """
    path = Path(path)
    if path.suffix != ".npz" or not path.is_file():
        return None
    labels = _read_array(path, "arr_1", is_required=False)
    if labels is None:
        return None
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{path}: arr_1 must be integers (N,), got {labels.dtype} {labels.shape}")
    return torch.from_numpy(labels.astype(np.int64))


def _read_npz(path: Path, size: int) -> Tensor:
    """`arr_0`, uint8 (N, H, W, 3), as uint8 `(N, 3, H, W)`."""
    pixels = _read_array(path, "arr_0", is_required=True)
    assert pixels is not None
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
        raise ValueError(
            f"{path}: arr_0 must be uint8 (N, {size}, {size}, 3), got {pixels.dtype} {pixels.shape}"
        )
    return rearrange(torch.from_numpy(pixels), "n h w c -> n c h w")


def _read_array(path: Path, name: str, *, is_required: bool) -> np.ndarray | None:
    """One array of an npz file, without unpickling anything and without reading the others."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if f"{name}.npy" not in names:
                if not is_required:
                    return None
                raise ValueError(f"{path} has no {name}, only {', '.join(names) or 'nothing'}")
            with archive.open(f"{name}.npy") as member:
                array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
                return array
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a readable npz file: {error}") from error

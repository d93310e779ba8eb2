"""Folders of image files and ADM-style npz files: read for evaluation, written by sampling."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from lambda24.common.data.class_folders import image_files
from lambda24.common.images import UnreadableImageError, as_rgb, decode_rgb
from lambda24.common.metrics.reference import ImageSource, TensorImages

SETTINGS_KEY = "lambda24"  # of a PNG's text, for what the image was made with


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
                pixels = np.array(as_rgb(file))
        except (UnidentifiedImageError, OSError, SyntaxError, struct.error, ValueError) as error:
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
        files = _image_paths(path)
        if not files:
            raise ValueError(f"{path} holds no images")
        return FolderImages(files, size)
    if path.suffix == ".npz" and path.is_file():
        return TensorImages(_read_npz(path, size))
    raise ValueError(f"{path} is neither a folder of images nor an npz file")


def image_size(path: str | Path) -> int:
    """Side of the first image of a folder or npz file, which must be square.

    Raises:
        ValueError: nothing there, no images, or a first image that is not square or not readable.
    """
    path = Path(path)
    if path.suffix == ".npz" and path.is_file():
        pixels = _read_array(path, "arr_0", is_required=True)
        assert pixels is not None
        shape = pixels.shape[1:3]
    else:
        files = _image_paths(path) if path.is_dir() else []
        if not files:
            raise ValueError(f"{path} is no folder of images and no npz file")
        try:
            shape = decode_rgb(str(files[0])).size
        except UnreadableImageError as error:
            raise ValueError(f"{files[0]} is not a readable image: {error}") from error
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"images of {path} must be square, the first is {tuple(shape)}")
    return int(shape[0])


def read_labels(path: str | Path) -> Tensor | None:
    """Class numbers `(N,)` of the images of `open_images`, or None where one is not known.

    Of an npz file its `arr_1`, of a folder the `label` among each PNG's settings (`save_png`).

    Raises:
        ValueError: an `arr_1` that is not a list of integers, or a file that is no image.
    """
    path = Path(path)
    if path.is_dir():
        found = [_png_label(file) for file in _image_paths(path)]
        known = [label for label in found if label is not None]
        return torch.tensor(known) if known and len(known) == len(found) else None
    if path.suffix != ".npz" or not path.is_file():
        return None
    labels = _read_array(path, "arr_1", is_required=False)
    if labels is None:
        return None
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{path}: arr_1 must be integers (N,), got {labels.dtype} {labels.shape}")
    return torch.from_numpy(labels.astype(np.int64))


def _image_paths(folder: Path) -> list[Path]:
    return [folder / path for path in image_files(folder)]


def _png_label(path: Path) -> int | None:
    try:
        with Image.open(path) as file:
            settings = json.loads(file.info.get(SETTINGS_KEY, "null"))
    except (UnidentifiedImageError, OSError, SyntaxError, struct.error) as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error
    except ValueError:  # another program's text
        return None
    label = settings.get("label") if isinstance(settings, dict) else None
    return label if type(label) is int else None  # neither a bool nor a name


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


def save_png(image: Image.Image, path: Path, settings: Mapping[str, Any]) -> None:
    """Writes a PNG that says what it was made with; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngImagePlugin.PngInfo()
    info.add_text(SETTINGS_KEY, json.dumps(settings, sort_keys=True))
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
    image.save(temporary, format="png", pnginfo=info)
    os.replace(temporary, path)


def is_saved(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether `save_png` has written this image before; a damaged one has to be drawn again.

    Raises:
        ValueError: a file that is no image or was made with other settings.
    """
    if not path.exists():
        return False
    try:
        with Image.open(path) as file:
            found = file.info.get(SETTINGS_KEY)
            is_whole = _has_pixels(file)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error
    if found != json.dumps(settings, sort_keys=True):
        raise ValueError(f"{path} was made with other settings: {found}, not {dict(settings)}")
    return is_whole


def _has_pixels(image: Image.Image) -> bool:
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, struct.error):  # what decoders make of damage
        return False
    return True


def write_npz(
    paths: Sequence[Path], labels: Sequence[int], path: str | Path, *, seed: int = 0
) -> None:
    """Packs images into the npz file of ADM's evaluator, in an order shuffled by `seed`.

    `arr_0` is uint8 (N, H, W, 3), `arr_1` the int64 labels. Shuffled, because Inception Scores over
    splits depend on the order. Holds one image at a time.

    Raises:
        ValueError: no images, unreadable ones, or images of several sizes.
    """
    if not paths or len(paths) != len(labels):
        raise ValueError(f"an npz file needs images and labels, got {len(paths)} and {len(labels)}")
    with Image.open(paths[0]) as first:
        source = FolderImages(paths, first.width)
    order = np.random.default_rng(seed).permutation(len(paths))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    shape = (len(paths), source.size, source.size, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for index in order:
                pixels = rearrange(source.images_uint8([index]), "1 c h w -> h w c")
                member.write(pixels.contiguous().numpy().tobytes())
        with archive.open("arr_1.npy", "w") as member:
            np.lib.format.write_array(member, np.asarray(labels, np.int64)[order])
    os.replace(temporary, path)

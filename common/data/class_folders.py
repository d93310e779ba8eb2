"""Folders of images, `folder/CLASS/image` or `folder/SPLIT/CLASS/image`: what lies where.

Hidden files and folders, and folders such as `__MACOSX`, are not seen, as in `datasets`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

SPLIT_FOLDERS = {"train", "training", "validation", "val", "valid", "dev", "test"}


def class_files(folder: Path) -> dict[str, list[str]]:
    """Globs of the images by split, "train" where there are no split folders.

    Raises:
        ValueError: an image that is not in exactly one class folder.
    """
    # Named explicitly because `datasets` would take a class called "train" for a split.
    splits = {name: folder / name for name in _splits(folder)} or {"train": folder}
    return {name: _patterns(place) for name, place in splits.items()}


def _patterns(folder: Path) -> list[str]:
    """Globs of the files of all class folders, which may be links."""
    absolute = Path(os.path.abspath(folder))
    classes = [child for child in absolute.iterdir() if child.is_dir() and _is_seen(child.name)]
    if not any(child.is_symlink() for child in classes):
        return [f"{glob.escape(str(absolute))}/*/**"]
    # A wildcard does not stand for a link to a folder.
    return [f"{glob.escape(str(child))}/*" for child in sorted(classes) if any(child.iterdir())]


def _splits(folder: Path) -> tuple[str, ...]:
    """Names of the splits of `folder/SPLIT/CLASS/image`; nothing for `folder/CLASS/image`.

    All subfolders are splits, or none is.

    Raises:
        ValueError: an image that is not in exactly one class folder.
    """
    top = {child.name for child in folder.iterdir() if child.is_dir() and _is_seen(child.name)}
    splits = tuple(sorted(top)) if top <= SPLIT_FOLDERS else ()
    suffixes = image_suffixes()
    for place, names in walk(folder):
        found = next((name for name in names if Path(name).suffix.lower() in suffixes), None)
        if found is None or len(place.parts) == (2 if splits else 1):
            continue
        form = folder / ("SPLIT/CLASS/image" if splits else "CLASS/image")
        hint = ""
        if not splits and top & SPLIT_FOLDERS:
            named, others = sorted(top & SPLIT_FOLDERS), sorted(top - SPLIT_FOLDERS)
            hint = f"; splits ({', '.join(named)}) and classes ({', '.join(others)}) do not mix"
        raise ValueError(
            f"data.path {str(folder)!r}: images must lie in one folder per class ({form}), "
            f"but there is {folder / place / found}{hint}"
        )
    return splits


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder's path below `folder` and its files, in order, as far as `datasets` sees them.

    A link to a folder that it lies in is not followed.
    """
    for place, folders, names in os.walk(folder, followlinks=True):
        above = {os.path.realpath(place), *map(str, Path(os.path.realpath(place)).parents)}
        folders[:] = sorted(
            name
            for name in folders
            if _is_seen(name) and os.path.realpath(os.path.join(place, name)) not in above
        )
        seen = sorted(name for name in names if not name.startswith("."))
        yield Path(place).relative_to(folder), seen


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, relative to it, in order."""
    suffixes = image_suffixes()
    return sorted(
        place / name
        for place, names in walk(folder)
        for name in names
        if Path(name).suffix.lower() in suffixes
    )


def _is_seen(folder_name: str) -> bool:
    return not folder_name.startswith((".", "__"))


def image_suffixes() -> set[str]:
    """Of files that can be read as images: `.png`, `.jpg`, ..."""
    known = Image.registered_extensions()  # also of formats that can only be written, as .pdf
    return {suffix for suffix, kind in known.items() if kind in Image.OPEN}

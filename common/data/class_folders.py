"""Folders of images, `folder/CLASS/image` or `folder/SPLIT/CLASS/image`: what lies where.

Hidden files and folders, and folders such as `__MACOSX`, are not seen, as in `datasets`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

SPLIT_FOLDERS = {"train", "training", "validation", "val", "valid", "dev", "test"}


def class_files(folder: Path) -> dict[str, list[Path]]:
    """Images by split, "train" where there are no split folders, in the order of their paths.

    Raises:
        ValueError: an image that is not in exactly one class folder.
    """
    splits = _splits(folder)
    files: dict[str, list[Path]] = {name: [] for name in splits or ("train",)}
    for path in image_files(folder):
        files[path.parts[0] if splits else "train"].append(path)
    return {name: sorted(paths, key=str) for name, paths in files.items()}


def left_aside(folder: Path) -> str | None:
    """What lies in a folder beside images, in words: `2 .heic (a/1.heic, ...)`; None: nothing."""
    known, others = image_suffixes(), defaultdict[str, list[Path]](list)
    for place, names in walk(folder):
        for name in names:
            suffix = Path(name).suffix.lower()
            if suffix not in known:
                others[suffix or "without a suffix"].append(place / name)
    parts = [
        f"{len(paths)} {suffix} ({paths[0]}{', ...' if len(paths) > 1 else ''})"
        for suffix, paths in sorted(others.items())
    ]
    return ", ".join(parts) or None


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

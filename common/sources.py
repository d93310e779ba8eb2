"""Where labelled images come from: Hugging Face datasets, class folders, and scikit-learn's digits.

A source has named splits; a `Table` is one split, its labels checked, its images still undecoded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.images import UnreadableImageError, decode_rgb

TABLE_SUFFIXES = {".parquet", ".arrow", ".json", ".jsonl", ".csv", ".tar", ".zip"}
IMAGE_KEYS = ("image", "img", "picture")
LABEL_KEYS = ("label", "labels", "fine_label", "class", "cls", "target")
SPLIT_FOLDERS = {"train", "training", "validation", "val", "valid", "dev", "test"}


@dataclass(frozen=True)
class Table(ABC):
    """Rows of one split: `labels (N,)` int64, each an index into `label_names`."""

    labels: np.ndarray
    label_names: tuple[str, ...]

    @abstractmethod
    def image(self, row: int) -> Image.Image:
        """One RGB image.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """


class Source(ABC):
    """Named splits of one dataset."""

    path: str
    splits: tuple[str, ...]

    def check_split(self, field: str, split: str) -> None:
        """Raises ValueError when there is no such split; `field` is the config's name for it."""
        if split not in self.splits:
            raise ValueError(
                f"data.{field}: got {split!r}, but {self.path!r} has only: {', '.join(self.splits)}"
            )

    @abstractmethod
    def table(
        self, split: str, train_split: str, image_key: str | None, label_key: str | None
    ) -> Table:
        """Opens a split; label names come from `train_split`."""


def open_source(path: str) -> Source:
    """Opens "digits", a local folder or a Hub dataset.

    Raises:
        ValueError: nothing there, or nothing in it.
    """
    return _Digits() if path == "digits" else _HuggingFace(path)


@dataclass(frozen=True)
class _ArrayTable(Table):
    pixels: np.ndarray  # (N, H, W) uint8 grey

    def image(self, row: int) -> Image.Image:
        return Image.fromarray(self.pixels[row]).convert("RGB")


class _Digits(Source):
    """scikit-learn's 1,797 handwritten digits: 8x8, 17 grey levels."""

    path, splits = "digits", ("train",)

    def table(
        self, split: str, train_split: str, image_key: str | None, label_key: str | None
    ) -> Table:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        pixels = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
        return _ArrayTable(labels.astype(np.int64), tuple("0123456789"), pixels)


@dataclass(frozen=True)
class _ArrowTable(Table):
    cells: Any  # pyarrow.ChunkedArray of {bytes, path}

    def image(self, row: int) -> Image.Image:
        cell = self.cells[row].as_py()
        content = None if cell is None else cell["bytes"] or cell["path"]
        if content is None:
            raise UnreadableImageError("the row is empty")
        return decode_rgb(content)


class _HuggingFace(Source):
    """Anything `datasets.load_dataset` opens."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._splits = open_splits(path)
        self.splits = tuple(self._splits)

    def table(
        self, split: str, train_split: str, image_key: str | None, label_key: str | None
    ) -> Table:
        import datasets

        rows, training = self._splits[split], self._splits[train_split]
        image_key = find_column(self.path, rows, "image", image_key, datasets.Image, IMAGE_KEYS)
        label_key = find_column(
            self.path, rows, "label", label_key, datasets.ClassLabel, LABEL_KEYS
        )
        labels, names = self._labels(rows, training, label_key)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if len(wrong):
            raise ValueError(
                f"data.path {self.path!r}: label of image {wrong[0]} in split {split!r} is "
                f"{labels[wrong[0]]} (allowed: 0 to {len(names) - 1})"
            )
        undecoded = rows.cast_column(image_key, datasets.Image(decode=False))
        return _ArrowTable(labels, names, undecoded.data.column(image_key))

    def _labels(self, rows: Any, training: Any, key: str) -> tuple[np.ndarray, tuple[str, ...]]:
        values = np.asarray(rows[key][:])
        known = training.features.get(key)
        if getattr(known, "names", None):
            return _integers(values, self.path, key), tuple(known.names)
        reference = np.asarray(training[key][:])
        if reference.dtype.kind in "US":
            names = sorted(set(reference.tolist()))
            index = {name: number for number, name in enumerate(names)}
            numbers = [index.get(value, -1) for value in values.tolist()]
            return np.asarray(numbers, dtype=np.int64), tuple(names)
        count = int(_integers(reference, self.path, key).max(initial=0)) + 1
        return _integers(values, self.path, key), tuple(str(n) for n in range(count))


def find_column(
    path: str, rows: Any, what: str, key: str | None, kind: type, usual: tuple[str, ...]
) -> str:
    """The column named `key`, or else of feature type `kind`, or else of a `usual` name.

    Raises:
        ValueError: there is none; names `what` is missing and the columns of `rows`.
    """
    columns = list(rows.features)
    typed = [name for name, feature in rows.features.items() if isinstance(feature, kind)]
    named = [name for name in usual if name in columns]
    candidates = [key] if key is not None else typed + named
    if not candidates or candidates[0] not in columns:
        raise ValueError(
            f"data.{what}_key: {path!r} has no {what} column"
            f"{'' if key is None else f' {key!r}'}; its columns are: {', '.join(columns)}"
        )
    return str(candidates[0])


def _integers(values: np.ndarray, path: str, key: str) -> np.ndarray:
    if values.ndim != 1 or values.dtype.kind not in "iub":
        raise ValueError(
            f"data.label_key: column {key!r} of {path!r} must hold one integer, class or string "
            f"per image, got {values.dtype} of shape {values.shape}"
        )
    return values.astype(np.int64)


def open_splits(path: str, *, streaming: bool = False) -> Any:
    """Dataset by split name, as `datasets.load_dataset` gives it.

    Raises:
        ValueError: nothing there, nothing in it, or class folders that are to be streamed.
    """
    import datasets

    folder = Path(path)
    options: dict[str, Any] = {"path": path}
    if folder.is_dir():
        suffixes = {file.suffix.lower() for file in folder.rglob("*") if file.is_file()}
        if not suffixes & set(Image.registered_extensions()) | suffixes & TABLE_SUFFIXES:
            raise ValueError(f"data.path {path!r} holds no images and no tables of images")
        if not suffixes & TABLE_SUFFIXES:
            if streaming:
                raise ValueError(
                    f"data.path {path!r} holds class folders; data.streaming reads shards (.parquet"
                    " or .tar) and class folders need no streaming"
                )
            options = {
                "path": "imagefolder",
                "data_files": _class_folders(folder),
                "drop_labels": False,
            }
    elif folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        raise ValueError(f"data.path {path!r} is not a folder")
    try:
        loaded = datasets.load_dataset(**options, streaming=streaming)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"data.path {path!r} cannot be opened: {error}") from error
    return loaded


def _class_folders(folder: Path) -> dict[str, str]:
    """Glob of each split: `folder/split/class/*` where all subfolders are splits, else one split.

    Named explicitly because `datasets` would take a class called "train" for a split.
    """
    names = sorted(child.name for child in folder.iterdir() if child.is_dir())
    if names and set(names) <= SPLIT_FOLDERS:
        return {name: f"{folder}/{name}/*/**" for name in names}
    if not names:
        raise ValueError(f"data.path {str(folder)!r}: images must lie in one folder per class")
    return {"train": f"{folder}/*/**"}

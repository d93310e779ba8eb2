"""Where labelled images come from: Hugging Face datasets, class folders, and scikit-learn's digits.

A source has named splits; a `Table` is one split, its labels checked, its images still undecoded.
"""

from __future__ import annotations

import glob
import logging
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lambda24.common.data.class_folders import (
    class_files,
    image_files,
    image_suffixes,
    left_aside,
    walk,
)
from lambda24.common.images import UnreadableImageError, decode_rgb

logger = logging.getLogger(__name__)

TABLE_SUFFIXES = {".parquet", ".arrow", ".json", ".jsonl", ".csv", ".tar", ".zip"}
IMAGE_KEYS = ("image", "img", "picture")
LABEL_KEYS = ("label", "labels", "fine_label", "class", "cls", "target")


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

    def name(self, row: int) -> str:
        """What messages call an image: `image 36`, and its file where that is known."""
        path = self.file(row)
        return f"image {row}" + (f" ({path})" if path else "")

    def file(self, row: int) -> str | None:
        """The file that an image comes from, if it has one of its own."""
        return None

    def content(self, row: int) -> bytes:
        """What an image is decoded from, or else its pixels; empty where there is nothing."""
        try:
            return self.image(row).tobytes()
        except UnreadableImageError:
            return b""

    def content_size(self, row: int) -> int:
        """Bytes of `content`."""
        return len(self.content(row))


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
    if path == "digits":
        return _Digits()
    folder = Path(path)
    if folder.is_dir() and _has_class_folders(folder):
        return _ClassFolders(folder)
    return _HuggingFace(path)


def _has_class_folders(folder: Path) -> bool:
    """Whether images lie in folders of `folder`; a lone one may be a table's, `metadata.csv`."""
    places = {path.parent for path in image_files(folder)}
    if not places or places == {Path()}:
        return False
    has_table = any(
        Path(name).stem == "metadata" and Path(name).suffix.lower() in TABLE_SUFFIXES
        for _, names in walk(folder)
        for name in names
    )
    return len(places) > 1 or not has_table


@dataclass(frozen=True)
class _FileTable(Table):
    files: tuple[str, ...]

    def image(self, row: int) -> Image.Image:
        return decode_rgb(self.files[row])

    def file(self, row: int) -> str:
        return self.files[row]

    def content_size(self, row: int) -> int:
        return os.stat(self.files[row]).st_size

    def content(self, row: int) -> bytes:
        return Path(self.files[row]).read_bytes()


class _ClassFolders(Source):
    """`folder/CLASS/image` or `folder/SPLIT/CLASS/image`; whatever else lies there is told."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder)
        self._files = class_files(folder)
        self.splits = tuple(self._files)
        classes = {file.parent.name for files in self._files.values() for file in files}
        self._label_names = tuple(sorted(classes))
        others = left_aside(folder)
        if others is not None:
            logger.warning("data.path %s: class folders are read, left aside: %s", folder, others)

    def table(
        self, split: str, train_split: str, image_key: str | None, label_key: str | None
    ) -> Table:
        for field, key in (("image_key", image_key), ("label_key", label_key)):
            if key is not None:
                raise ValueError(
                    f"data.{field}: got {key!r}, but {self.path!r} holds class folders, which "
                    "have no columns"
                )
        index = {name: number for number, name in enumerate(self._label_names)}
        paths = self._files[split]
        labels = np.array([index[path.parent.name] for path in paths], dtype=np.int64)
        absolute = Path(os.path.abspath(self.path))
        return _FileTable(labels, self._label_names, tuple(str(absolute / path) for path in paths))


@dataclass(frozen=True)
class _ArrayTable(Table):
    pixels: np.ndarray  # (N, H, W) uint8 grey

    def image(self, row: int) -> Image.Image:
        return Image.fromarray(self.pixels[row]).convert("RGB")

    def content(self, row: int) -> bytes:
        return self.pixels[row].tobytes()


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

    def file(self, row: int) -> str | None:
        path: str | None = self.cells[row]["path"].as_py()
        return path

    def content(self, row: int) -> bytes:
        cell = self.cells[row].as_py() or {"bytes": None, "path": None}
        if cell["bytes"] is None and cell["path"] and os.path.isfile(cell["path"]):
            return Path(cell["path"]).read_bytes()
        return cell["bytes"] or b""


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

    Of several columns of the type the first of a usual name is read.

    Raises:
        ValueError: several and none of a usual name, or there is none; names `what` is missing and
            the columns of `rows`.
    """
    columns = list(rows.features)
    typed = [name for name, feature in rows.features.items() if isinstance(feature, kind)]
    # Plain integers called "label" are labels; what is called "image" may be its file's name.
    eligible = columns if what == "label" else typed or columns
    exact = [name for name in usual if name in eligible]
    candidates = [key] if key is not None else exact[:1] or typed
    if len(candidates) > 1:
        raise ValueError(
            f"data.{what}_key: {path!r} has {len(candidates)} {what} columns "
            f"({', '.join(candidates)}); name the one to read"
        )
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
    absent = ""
    options: dict[str, Any] = {"path": path}
    if folder.is_dir():
        options |= _local_options(folder, streaming=streaming)
    else:
        _check_hub_name(path)
        absent = "no such folder is here, and as a dataset of the Hugging Face Hub it "
    try:
        loaded = datasets.load_dataset(**options, streaming=streaming)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"data.path {path!r}: {absent}cannot be opened: {error}") from error
    return loaded


def _check_hub_name(path: str) -> None:
    """Refuses what is certainly a folder's name, before the Hub is asked, which can take long.

    Raises:
        ValueError: a file, or a name that no dataset of the Hub can have.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if Path(path).exists():
        raise ValueError(f"data.path {path!r} is not a folder but a file")
    home = "; ~ is not expanded here" if path.startswith("~") else ""
    try:
        if path.startswith((".", "~")):
            raise HFValidationError
        validate_repo_id(path)
    except HFValidationError:
        raise ValueError(f"data.path {path!r} is not a folder: nothing is there{home}") from None
    # Names of the Hub are usually "owner/name", and no folder here is called like the owner.
    if Path(path).parent.is_dir():
        logger.warning("data.path: no folder %r is here, asking the Hugging Face Hub", path)


def _local_options(folder: Path, *, streaming: bool) -> dict[str, Any]:
    """What `datasets.load_dataset` needs to open a folder of tables or of class folders."""
    from datasets.data_files import get_data_patterns

    suffixes = {Path(name).suffix.lower() for _, names in walk(folder) for name in names}
    if not suffixes & (image_suffixes() | TABLE_SUFFIXES):
        raise ValueError(f"data.path {str(folder)!r} holds no images and no tables of images")
    if _has_class_folders(folder) or not suffixes & TABLE_SUFFIXES:
        if streaming:
            raise ValueError(
                f"data.path {str(folder)!r} holds class folders; data.streaming reads shards "
                "(.parquet or .tar) and class folders need no streaming"
            )
        class_files(folder)  # says what is wrong with images that lie in no class folder
    # Absolute, as a relative pattern would be joined to a working directory that is not escaped.
    absolute = os.path.abspath(folder)
    if (folder / "README.md").exists() and glob.escape(absolute) == absolute:
        return {}  # a dataset card says which file is which
    return {"data_files": _table_files(folder, get_data_patterns(glob.escape(absolute)))}


def _table_files(folder: Path, patterns: Any) -> dict[str, list[str]]:
    """Files of tables by split: all of the first kind that is there, others are told.

    Raises:
        ValueError: files that belong to no split beside some that do.
    """
    from datasets.data_files import DataFilesPatternsDict

    absolute = glob.escape(os.path.abspath(folder))
    tables = [
        str(Path(os.path.abspath(folder)) / place / name)
        for place, names in walk(folder)
        for name in names
        if Path(name).suffix.lower() in TABLE_SUFFIXES
    ]
    main = next((kind for kind in (".parquet", ".arrow", ".tar") if _of_kind(tables, kind)), None)
    if main is None:
        return {
            str(split): [f"{absolute}/{pattern}" for pattern in names]
            for split, names in patterns.items()
        }
    read, ignored = _of_kind(tables, main), [t for t in tables if t not in _of_kind(tables, main)]
    if ignored:
        logger.warning("data.path %s: %s files are read, ignored: %s", folder, main, ignored)
    found = DataFilesPatternsDict.from_patterns(
        {split: [f"{absolute}/{pattern}" for pattern in names] for split, names in patterns.items()}
    ).resolve("")
    splits = {str(split): [str(f) for f in files if f in read] for split, files in found.items()}
    splits = {split: files for split, files in splits.items() if files}
    rest = sorted(set(read) - {file for files in splits.values() for file in files})
    if rest and set(splits) - {"train"}:
        raise ValueError(
            f"data.path {str(folder)!r}: {', '.join(map(os.path.basename, rest))} belong to none "
            f"of the splits that the other files name ({', '.join(splits)}); rename or move them"
        )
    if rest:
        splits = {"train": sorted(read)}
    return {split: [glob.escape(file) for file in files] for split, files in splits.items()}


def _of_kind(files: list[str], suffix: str) -> list[str]:
    return [file for file in files if Path(file).suffix.lower() == suffix]

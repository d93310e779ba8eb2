"""Folders and tables of small pictures for tests of data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from lambda24.common.data.settings import DataConfig


def picture(level: int, size: tuple[int, int] = (12, 12)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def class_folders(folder: Path, count: int = 5, names: tuple[str, ...] = ("cat", "train")) -> Path:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture(100 * number + index).save(folder / name / f"test_{index}.png")
    return folder


def table(path: Path, columns: dict[str, Any]) -> None:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)


def cells(levels: range, size: tuple[int, int] = (12, 12)) -> list[dict[str, Any]]:
    return [{"bytes": png(picture(level, size)), "path": None} for level in levels]


def config(path: Path | str, **options: Any) -> DataConfig:
    return DataConfig(path=str(path), **{"image_size": 12, **options})

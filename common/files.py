"""Files and folders, never half-written, and digests that tell whether a file is as written."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 under a temporary name and renames it; makes parent folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path` that becomes `path` when the block succeeds.

    An exception removes it; a killed process leaves only a `.tmp` folder that nothing reads and the
    next writer clears. An existing `path` is replaced after the new folder is complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    replaced = path.with_name(path.name + ".old.tmp")
    for leftover in (temporary, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                sync(file)
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(file: Path) -> None:
    """Waits until a file is on the disk."""
    with open(file, "rb+") as handle:
        os.fsync(handle.fileno())


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal; about a second a gigabyte."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_file(path: str | Path) -> Path:
    """Where the digest of a file lies: beside it, with `.sha256` in the place of its ending."""
    return Path(path).with_suffix(".sha256")


def write_digest(path: str | Path) -> None:
    """Writes the digest of a file beside it."""
    replace_text(digest_file(path), file_digest(path) + "\n")


def is_as_written(path: str | Path) -> bool:
    """Whether a file is there, with a digest beside it that is its own."""
    path, beside = Path(path), digest_file(path)
    if not (path.is_file() and beside.is_file()):
        return False
    return beside.read_text(encoding="utf-8", errors="replace").strip() == file_digest(path)

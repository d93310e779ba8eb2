"""Files and folders: never half-written, told from damaged ones, and failures told in one line."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


class DamagedFileError(ValueError):
    """A file that cannot be read as what it should be; the message names it."""


class UnwritableError(ValueError):
    """A file that cannot be written; the message says what was needed and what is safe."""


@contextmanager
def reading(path: str | Path, kind: str) -> Iterator[None]:
    """Around the reading of one file: whatever a decoder makes of damaged bytes is one line.

    Args:
        kind: what the file should be, for the message.

    Raises:
        DamagedFileError: names the file.
    """
    try:
        yield
    except DamagedFileError:
        raise
    except Exception as error:  # decoders raise anything on damaged input
        raise DamagedFileError(f"{path} is damaged or not {kind}: {_one_line(error)}") from error


@contextmanager
def writing(path: str | Path, *, needed: int, safe: str) -> Iterator[None]:
    """Around the writing of files: a full disk, a size limit or a read-only folder is one line.

    Args:
        path: file or folder that is written.
        needed: bytes.
        safe: what is whole all the same, for the message.

    Raises:
        UnwritableError: names the path, the bytes needed and free, and what is safe.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        there = next(folder for folder in Path(path).absolute().parents if folder.is_dir())
        free = shutil.disk_usage(there).free
        raise UnwritableError(
            f"{path} cannot be written: {_one_line(error)}; it takes {needed / 2**20:,.1f} MiB, "
            f"{free / 2**20:,.1f} MiB are free there; {safe}"
        ) from error


def _one_line(error: Exception) -> str:
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    line = " ".join(str(text).split())
    return line if len(line) <= 200 else line[:197] + "..."


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


def check_digest(path: str | Path) -> None:
    """Raises DamagedFileError if there is a digest beside a file that is not its own.

    Files of versions that wrote none are taken as they are.
    """
    if digest_file(path).exists() and not is_as_written(path):
        raise DamagedFileError(
            f"{path} is damaged: its digest is not that of {digest_file(path).name}"
        )

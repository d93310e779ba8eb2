"""Small text files, never half-written."""

from __future__ import annotations

import os
from pathlib import Path


def replace_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 under a temporary name and renames it; makes parent folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)

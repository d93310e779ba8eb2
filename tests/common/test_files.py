"""A file is there whole or not at all."""

from pathlib import Path

import pytest

from lambda24.common.files import replace_text


def test_a_failure_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    replace_text(path, "äöü\n")
    assert path.read_bytes() == "äöü\n".encode()
    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "half \ud800")
    assert path.read_text(encoding="utf-8") == "äöü\n"

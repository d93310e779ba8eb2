"""A file is there whole or not at all."""

from pathlib import Path

import pytest

from lambda24.common.files import atomic_folder, replace_text


def test_a_failure_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    replace_text(path, "äöü\n")
    assert path.read_bytes() == "äöü\n".encode()
    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "half \ud800")
    assert path.read_text(encoding="utf-8") == "äöü\n"


def test_atomic_folder(tmp_path: Path) -> None:
    target = tmp_path / "step"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(KeyError), atomic_folder(target) as folder:  # noqa: PT012
        (folder / "a").write_text("2")
        raise KeyError
    assert (target / "a").read_text() == "1"
    with atomic_folder(target) as folder:
        (folder / "b").write_text("3")
    assert [file.name for file in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["step"]

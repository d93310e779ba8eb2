"""The fuzz finds nothing in a short run, and finds a reader that lets damage through."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lambda24.scripts.fuzz_files import Target, damaged, fuzz_files, main


def test_a_short_run_finds_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    found = main(["--files", "120", "--configs", "60", "--seed", "7"])
    assert sum(outcomes.refused + outcomes.read for outcomes in found.values()) == 180
    assert found["configs"].refused > found["configs"].read > 0
    weights = next(v for name, v in found.items() if name.endswith("model.safetensors"))
    assert weights.refused > 0
    assert "largest memory" in capsys.readouterr().out


def test_a_reader_without_a_boundary_is_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "numbers.txt"
    file.write_text("[1, 2, 3]")

    def read() -> int:
        return int(file.read_bytes()[1:2]) // len(file.read_bytes().decode("ascii"))

    found = fuzz_files([Target(file, read)], 60, random.Random(0))
    (outcomes,) = found.values()
    assert outcomes.faults
    assert file.read_text() == "[1, 2, 3]"  # as it was


def test_changes_are_seeded() -> None:
    content = bytes(range(200))
    first, again = ([damaged(content, random.Random(n)) for n in range(50)] for _ in range(2))
    assert first == again
    assert sum(changed != content for changed in first) > 40

"""The console command: every program by its name."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from lambda24.scripts import cli


def test_every_program_can_be_run() -> None:
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {"__init__", "cli"}
    assert {name.replace("-", "_") for name in cli.PROGRAMS} == files
    for name in files:
        assert callable(import_module(f"lambda24.scripts.{name}").main)


def test_help_names_all_programs(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main([])
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.PROGRAMS)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train-tokenizer", "--help"])
    assert ended.value.code == 0
    assert "usage: lambda24 train-tokenizer" in capsys.readouterr().out


def test_an_unknown_program() -> None:
    with pytest.raises(ValueError, match=r"program must be one of quickstart, .*got 'draw'"):
        cli.main(["draw"])


def test_configs_of_the_package_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From any folder, with the name that README gives or a shorter one."""
    monkeypatch.chdir(tmp_path)
    texts = []
    for name in ("configs/debug/tokenizer.yaml", "debug/tokenizer"):
        cli.main(["train-tokenizer", name, "--dry-run"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert "steps" in texts[0]
    with pytest.raises(ValueError, match=r"debug/tokenizr.* \(closest: debug/tokenizer\.yaml"):
        cli.main(["train-tokenizer", "debug/tokenizr", "--dry-run"])


def test_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train-generator", "--keys"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert re.search(r"^loop\.steps: int  \(required\)  # optimizer steps", shown, re.MULTILINE)
    assert re.search(r"^z_loss_weight: float = ", shown, re.MULTILINE)

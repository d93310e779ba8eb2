import json
import subprocess
import sys
from pathlib import Path

import pytest

from lambda24.common.command_line import run_program
from lambda24.common.config import config_class, load_config

ROOT = Path(__file__).parents[2]


@config_class
class Settings:
    steps: int = 1


def test_a_mistake_of_the_user_is_one_line() -> None:
    with pytest.raises(SystemExit) as ended:
        run_program(lambda: load_config(Settings, None, ["stepz=3"]))
    assert str(ended.value.code).startswith("error: ")
    assert "stepz" in str(ended.value.code)


def test_faults_keep_their_traceback() -> None:
    with pytest.raises(json.JSONDecodeError):  # a ValueError of the library, not ours
        run_program(lambda: json.loads("{"))
    with pytest.raises(ZeroDivisionError):
        run_program(lambda: 1 // 0)


@pytest.mark.parametrize(("flags", "has_traceback"), [((), False), (("-X", "dev"), True)])
def test_a_program_fails_with_code_1(flags: tuple[str, ...], has_traceback: bool) -> None:
    code = """
from lambda24.common.command_line import run_program
def main():
    raise ValueError("k is 9")
run_program(main)
"""
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == has_traceback
    assert done.stderr.rstrip().endswith("k is 9")
    assert has_traceback or done.stderr == "error: k is 9\n"

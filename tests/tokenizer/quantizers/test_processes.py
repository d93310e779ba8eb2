"""Two processes with half a batch each do what one does with the whole batch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch

PROGRAM = Path(__file__).with_name("two_processes.py")


def load_program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_processes", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_processes_equal_one(tmp_path: Path) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(rank), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    single = load_program().train_all(0, 1)
    errors = [run.communicate(timeout=300)[1] for run in runs]
    # Codes revived in the last step start again from uniform usage: gathering rows is tested too.
    assert (single["vq_ema"]["state.quantizer.usage"] == 1).any()
    for kind in ("vq_revival", "pyramid_vq_ema", "pyramid_gsq"):
        assert sum(int(single[kind][f"{step}.revived"]) for step in range(3)) > 0, kind
    assert [run.returncode for run in runs] == [0, 0], "\n".join(errors)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for kind, expected in single.items():
        assert any(".grad." in name for name in expected)
        for name, value in expected.items():
            message = f"{kind}: {name}"
            torch.testing.assert_close(
                first[kind][name], value, rtol=1e-4, atol=1e-5, msg=lambda m, s=message: f"{s}\n{m}"
            )
            assert torch.equal(first[kind][name], second[kind][name]), message

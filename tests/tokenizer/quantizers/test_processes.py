"""Two processes with half a batch each do what one does with the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

PROGRAM = Path(__file__).with_name("two_processes.py")


def test_two_processes_equal_one(tmp_path: Path) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(rank), str(world_size), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for world_size, rank in ((1, 0), (2, 0), (2, 1))
    ]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], "\n".join(errors)
    single, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")
    )
    assert len(single) >= 8
    for kind, expected in single.items():
        assert any(".grad." in name for name in expected)
        for name, value in expected.items():
            message = f"{kind}: {name}"
            torch.testing.assert_close(
                first[kind][name], value, rtol=1e-4, atol=1e-5, msg=lambda m, s=message: f"{s}\n{m}"
            )
            assert torch.equal(first[kind][name], second[kind][name]), message

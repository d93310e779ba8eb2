"""The best weights of a run by a number on held-out data, across kills; and when it rises."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lambda24.common.training.run_folder import BestWeights, is_first_rise
from tests.common.training.toy_run import program, toy_config, train, two_processes

VALUES = [5.0, 3.0, 4.0, 2.0, 6.0, 7.0, 8.0, 9.0]
LOOP: dict[str, Any] = {
    "schedule": "constant",
    "steps": 6,
    "eval_every": 1,
    "save_every": 3,
    "log_every": 2,
}
OPTIONS: dict[str, Any] = {"held_out": VALUES, "minimized": "nll"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole")
    train(toy_config(**LOOP), run, **OPTIONS)
    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "toy" / "model.pt", weights_only=True)
    return state


def assert_same_weights(one: Path, other: Path) -> None:
    pairs = weights(one), weights(other)
    for name, value in pairs[0].items():
        assert torch.equal(value, pairs[1][name]), name


def test_the_best_weights_lie_beside_the_last(whole: Path, tmp_path: Path) -> None:
    assert [path.name for path in (whole / "best").iterdir()] == ["step_000004"]
    assert json.loads((whole / "held_out.json").read_text()) == {
        "minimized": "nll",
        "this_folder": {"weights": "last", "step": 6},
        "best": {"folder": "best/step_000004", "step": 4, "nll": 2.0},
    }
    train(toy_config(**{**LOOP, "steps": 4}), tmp_path, **OPTIONS)
    assert_same_weights(tmp_path, whole / "best" / "step_000004")
    assert f"by held-out nll, 2 at step 4, are in {whole}/best/step_000004" in log(whole)


def log(run: Path) -> str:
    return (run / "log.txt").read_text()


def test_a_killed_run_keeps_its_best_weights(whole: Path, tmp_path: Path) -> None:
    """Killed after step 4, the best, and resumed from step 3, beside a half-written folder."""
    options = {**OPTIONS, "kill_at": 4}
    process = program({"configs": [LOOP], "run": str(tmp_path), "out": "", "options": options})
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    assert BestWeights(tmp_path, "nll").found == {"step": 4, "nll": 2.0}
    half = tmp_path / "best" / "step_000005.tmp"
    half.mkdir()
    (half / "held_out.json").write_text('{"step": 5, "nll": 0.5}')
    task, _ = train(toy_config(**LOOP), tmp_path, **OPTIONS)
    assert len(task.seen) == 3
    best = Path("best") / "step_000004"
    assert_same_weights(whole / best, tmp_path / best)
    assert (whole / "held_out.json").read_text() == (tmp_path / "held_out.json").read_text()


def test_a_resumed_run_still_finds_better_ones(tmp_path: Path) -> None:
    train(toy_config(**{**LOOP, "steps": 3}), tmp_path, **OPTIONS)
    assert BestWeights(tmp_path, "nll").found == {"step": 2, "nll": 3.0}
    train(toy_config(**LOOP), tmp_path, **OPTIONS)
    assert BestWeights(tmp_path, "nll").found == {"step": 4, "nll": 2.0}
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["step_000004"]


def test_a_rise_is_said_once_with_numbers(tmp_path: Path) -> None:
    config = toy_config(**{**LOOP, "steps": 8})
    train(config, tmp_path, **OPTIONS)
    found = [line for line in log(tmp_path).splitlines() if "has been higher" in line]
    assert len(found) == 1
    assert "held-out nll was 2 at step 4" in found[0]
    assert "in each of 3 evaluations since, now 8" in found[0]


def test_a_task_without_such_a_number_keeps_nothing(tmp_path: Path) -> None:
    train(toy_config(**LOOP), tmp_path)
    assert not (tmp_path / "best").exists()
    assert not (tmp_path / "held_out.json").exists()


def test_two_sharded_processes_keep_whole_weights(whole: Path, tmp_path: Path) -> None:
    options = {"configs": [{**LOOP, "dropout": 0.0}], "run": str(tmp_path / "run")}
    sharding = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    two_processes({**options, "options": OPTIONS}, tmp_path, **sharding)
    train(toy_config(**LOOP, dropout=0.0), tmp_path / "one", **OPTIONS)
    pair = [weights(tmp_path / name / "best" / "step_000004") for name in ("run", "one")]
    for name, value in pair[1].items():
        torch.testing.assert_close(pair[0][name], value, atol=2e-6, rtol=0)


def test_what_is_not_finite_is_never_best(tmp_path: Path) -> None:
    best = BestWeights(tmp_path, "nll")
    assert not best.is_beaten_by(math.nan)
    assert best.is_beaten_by(3.0)
    best.keep(10, 3.0, lambda folder: None)
    assert not best.is_beaten_by(3.0)
    assert best.is_beaten_by(2.9)
    best.keep(20, 2.9, lambda folder: None)
    assert best.found == {"step": 20, "nll": 2.9}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], False),
        ([3.0, 4.0, 5.0], False),
        ([3.0, 4.0, 5.0, 3.5], True),
        ([3.0, 4.0, 5.0, 3.0], False),  # as good as the best
        ([3.0, 4.0, 5.0, 6.0, 7.0], False),  # said before
        ([3.0, 4.0, 2.0, 5.0, 6.0], False),
        ([3.0, 4.0, 2.0, 5.0, 6.0, 2.1], True),
    ],
)
def test_when_a_rise_is_said(values: list[float], expected: bool) -> None:
    assert is_first_rise(values) is expected

"""Signals, second starts, and what a run finds when it is started again."""

from __future__ import annotations

import json
import logging
import shutil
import signal
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from lambda24.common.training import interruption
from lambda24.common.training.interruption import HOLDER_FILE, LOCK_FILE, only_start
from tests.common.training.toy_run import (
    ToyTask,
    program,
    records,
    toy_config,
    train,
    two_processes,
)

STEPS = {"log_every": 2, "save_every": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[ToyTask, Path]:
    run = tmp_path_factory.mktemp("whole")
    return train(toy_config(**STEPS), run)[0], run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_lets_the_step_finish_and_saves(
    whole: tuple[ToyTask, Path], tmp_path: Path, number: signal.Signals
) -> None:
    process = program(
        {
            "configs": [STEPS],
            "run": str(tmp_path),
            "out": str(tmp_path / "never.pt"),
            "options": {"signal_at": [2, number]},
        }
    )
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert f"stopped by {number.name} after step 3, which is saved" in shown
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000003"]
    resumed, _ = train(toy_config(**STEPS), tmp_path)
    assert resumed.digest() == whole[0].digest()


def test_all_processes_stop_after_the_same_step(tmp_path: Path) -> None:
    """Only one of them got the signal; neither waits for the other."""
    arguments = {
        "configs": [STEPS],
        "run": str(tmp_path / "run"),
        "options": {"signal_at": [2, signal.SIGUSR1]},
    }
    with pytest.raises(Exception, match=f"exit code {128 + signal.SIGUSR1}"):
        two_processes(arguments, tmp_path)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step_000003"]


def test_processes_go_on_with_their_own_sums(tmp_path: Path) -> None:
    """A stop between two lines of metrics changes none of them."""
    configs = [{"log_every": 4, "save_every": 3}]
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    stopped = {"configs": configs, "run": str(tmp_path / "stopped" / "run")}
    with pytest.raises(Exception, match=f"exit code {128 + signal.SIGUSR1}"):
        two_processes({**stopped, "options": {"signal_at": [2, signal.SIGUSR1]}}, tmp_path)
    two_processes(stopped, tmp_path / "stopped")
    two_processes({"configs": configs, "run": str(tmp_path / "whole" / "run")}, tmp_path / "whole")
    keys = ("step", "loss", "gradient_norm")
    found = [records(tmp_path / name / "run", *keys) for name in ("whole", "stopped")]
    assert found[0] == found[1]
    assert [line[0] for line in found[0]] == [4, 6]


def test_handlers_are_what_they_were_after_a_run(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in interruption.SIGNALS]
    train(toy_config(steps=1), tmp_path)
    assert [signal.getsignal(number) for number in interruption.SIGNALS] == before


def test_a_second_start_is_refused_with_the_holder(tmp_path: Path) -> None:
    with (
        only_start(tmp_path),
        pytest.raises(ValueError, match=r"is being trained by process \d+ on .+ since .*:"),
    ):
        train(toy_config(steps=2), tmp_path)
    assert not (tmp_path / HOLDER_FILE).exists()
    train(toy_config(steps=2), tmp_path)


def test_a_holder_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / HOLDER_FILE).write_text("[")
    with FileLock(tmp_path / LOCK_FILE), pytest.raises(ValueError, match="by another process"):
        train(toy_config(steps=2), tmp_path)


def test_what_a_killed_holder_left_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).touch()
    (tmp_path / HOLDER_FILE).write_text(json.dumps({"process": 1, "host": "x", "since": "y"}))
    train(toy_config(steps=2), tmp_path)


def test_where_a_file_system_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLocks(FileLock):  # type: ignore[misc, valid-type]
        def _acquire(self) -> None:
            raise NotImplementedError

    monkeypatch.setattr(interruption, "FileLock", NoLocks)
    with (
        only_start(tmp_path),
        pytest.raises(ValueError, match=r"if that process is gone, remove .*\.lock\.soft"),
    ):
        train(toy_config(steps=2), tmp_path)
    train(toy_config(steps=2), tmp_path)


@pytest.mark.parametrize("damage", ["missing", "stale"])
def test_a_finished_run_writes_its_model_again(
    whole: tuple[ToyTask, Path], tmp_path: Path, damage: str
) -> None:
    """As after a kill between the last checkpoint and the model folder."""
    run = tmp_path / "run"
    shutil.copytree(whole[1], run)
    model = run / "toy" / "model.pt"
    right = torch.load(model, weights_only=True)
    model.unlink()
    if damage == "stale":
        torch.save({name: tensor + 1 for name, tensor in right.items()}, model)
    task, _ = train(toy_config(**STEPS), run)
    assert task.seen == []
    found = torch.load(model, weights_only=True)
    assert found.keys() == right.keys()
    assert all(torch.equal(found[name], right[name]) for name in right)


def test_renamed_classes_are_other_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tests.common.training.toy_run import toy_data

    caplog.set_level(logging.INFO)
    train(toy_config(steps=2), tmp_path)
    data = toy_data(toy_config(steps=4))
    data.label_names = tuple("abcdefghij")
    with pytest.raises(ValueError, match=r"other data: classes '0, 1, .*', now 'a, b, "):
        train(toy_config(steps=4), tmp_path, data=data)

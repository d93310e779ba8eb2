"""Whole stage-1 runs with everything on: killed and resumed, and on two processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

KILLS, STEPS, HALF = 5, 8, 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    program = Path(__file__).with_name("stage_1_runs.py")
    # Sums of floats depend on the number of threads, and forks must not inherit a pool of them.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(program.parents[2])}
    done = subprocess.run(
        [sys.executable, str(program), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads((folder / "codes.json").read_text())
    assert codes["whole"] == [0], done.stderr
    return folder, codes, done.stderr


def checkpoint(run, step=STEPS):
    file = run / "checkpoints" / f"step_{step:06d}" / "state.pt"
    return torch.load(file, weights_only=True)["task"]


def metrics(run):
    """The training lines without times."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    timing = ("seconds", "images_per_second", "data_wait", "evaluation_share", "saving_share")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines if "loss" in line]


def tensors(state, prefix=""):
    """Every tensor and number of nested dicts and lists by name."""
    if isinstance(state, dict):
        pairs = state.items()
    elif isinstance(state, (list, tuple)):
        pairs = enumerate(state)
    else:
        return {prefix: state}
    return {k: v for name, part in pairs for k, v in tensors(part, f"{prefix}/{name}").items()}


def same(a, b):
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def test_killed_five_times_it_ends_bit_for_bit_like_the_undisturbed_run(runs):
    folder, codes, errors = runs
    assert codes["killed"] == [-signal.SIGKILL] * KILLS + [0], errors
    whole, killed = (tensors(checkpoint(folder / name)) for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    parts = {name.split("/")[1] for name in whole}
    assert parts == {"tokenizer", "ema", "optimizer", "alignment", "adversary"}
    assert any(name.startswith("/adversary/optimizer/state/") for name in whole)
    different = [
        name
        for name, value in whole.items()
        if not (
            torch.equal(value, killed[name]) if torch.is_tensor(value) else value == killed[name]
        )
    ]
    assert not different
    assert metrics(folder / "whole") == metrics(folder / "killed")
    assert [line["step"] for line in metrics(folder / "killed")] == list(range(1, STEPS + 1))


def test_the_log_has_both_sides(runs):
    lines = metrics(runs[0] / "whole")
    sides = {"d_loss", "g_loss", "logits_real", "logits_fake", "g_weight", "d_gradient_norm"}
    for line in lines:
        assert {"loss", "l1", "prefix", "vf_cosine", "vf_weight", "gradient_norm"} <= line.keys()
        active = line["step"] > 2
        assert sides & line.keys() == (sides if active else set())
        assert ("r1" in line) == (active and (line["step"] - 3) % 3 == 0)
    assert len({line["g_weight"] for line in lines[2:]}) == STEPS - 2  # adaptive


def test_two_processes_do_what_one_does(runs):
    folder, codes, errors = runs
    assert codes["two"] == [0, 0], errors
    one, two = (tensors(checkpoint(folder / name, HALF)) for name in ("whole", "two"))
    for name, value in one.items():
        if torch.is_tensor(value) and "/exp_avg" not in name:
            torch.testing.assert_close(two[name], value, atol=2e-4, rtol=1e-3, msg=name)
    first, second = (metrics(folder / name) for name in ("whole", "two"))
    assert len(second) == HALF
    for a, b in zip(first, second, strict=False):
        for name in ("loss", "d_loss", "g_weight", "vf_weight", "r1", "d_gradient_norm"):
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-5), (a["step"], name)

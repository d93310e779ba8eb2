"""`fit` on a small task: what it guards, writes and reports."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch

from tests.common.training.toy_run import ToyTask, records, toy_config, train


def test_accumulation_is_the_same_global_batch(tmp_path: Path) -> None:
    whole, _ = train(toy_config(steps=3, dropout=0.0), tmp_path / "1")
    parts, _ = train(toy_config(steps=3, dropout=0.0, accumulation=3), tmp_path / "3")
    joined = [list(chain(*parts.seen[i : i + 3])) for i in range(0, 9, 3)]
    assert joined == whole.seen
    for a, b in zip(whole.plain.parameters(), parts.plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_batch_size_must_divide(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"batch_size 12 must be .* 1 processes x .*accumulation 5"
    ):
        train(toy_config(accumulation=5), tmp_path)


def test_a_run_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for run in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=rf"run '{run}' cannot be written: "):
            train(toy_config(), run)


@pytest.mark.parametrize(
    ("kind", "name"), [("loss", r"gradient of (module\.)?0\.weight"), ("gradient", "4.bias")]
)
def test_not_finite_stops_the_run(tmp_path: Path, kind: str, name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"step 4: .*{name}.*checkpoints/step_000003"):
        train(toy_config(save_every=3), tmp_path, poison=(4, kind))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000003"]
    assert "step 4: gradient of" in (tmp_path / "log.txt").read_text()


def test_not_finite_scalar_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = ToyTask.train_step
    monkeypatch.setattr(
        ToyTask,
        "train_step",
        lambda self, batches, n: {**step(self, batches, n), "entropy": torch.tensor(-torch.inf)},
    )
    with pytest.raises(RuntimeError, match=r"step 0: entropy is -inf; last good checkpoint: none"):
        train(toy_config(), tmp_path)


def test_finished_run_returns_its_result(tmp_path: Path) -> None:
    _, first = train(toy_config(steps=2), tmp_path)
    task, second = train(toy_config(steps=2), tmp_path)
    assert second == first
    assert set(first) == {"weight_norm", "seconds"}
    assert task.seen == []
    assert "already finished" in (tmp_path / "log.txt").read_text()


def test_run_folder(tmp_path: Path) -> None:
    config = toy_config(steps=6, log_every=2, eval_every=3, save_every=2, sample_every=4)
    train(config, tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names - {".lock"} == {
        "config.yaml",
        "metrics.jsonl",
        "log.txt",
        "toy/model.pt",
        "samples/step_000004.png",
        "samples/step_000006.png",
        "checkpoints/step_000004/state.pt",
        "checkpoints/step_000004/state.sha256",
        "checkpoints/step_000006/state.pt",
        "checkpoints/step_000006/state.sha256",
    }
    assert records(tmp_path, "step", "loss", "gradient_norm", "data_wait", "images_per_second")
    assert [line[0] for line in records(tmp_path, "step", "eval/weight_norm")] == [3, 6]


def test_logged_scalars_are_means_over_steps(tmp_path: Path) -> None:
    train(toy_config(steps=4, log_every=1), tmp_path / "each")
    train(toy_config(steps=4, log_every=4), tmp_path / "all")
    each = [line[0] for line in records(tmp_path / "each", "loss")]
    assert records(tmp_path / "all", "loss")[0][0] == pytest.approx(sum(each) / 4, rel=1e-6)


def test_loop_leaves_precision_free_between_runs(tmp_path: Path) -> None:
    full, _ = train(toy_config(steps=2, dropout=0.0), tmp_path / "fp32")
    half, _ = train(toy_config(steps=2, dropout=0.0, precision="bf16"), tmp_path / "bf16")
    again, _ = train(toy_config(steps=2, dropout=0.0), tmp_path / "again")
    assert again.digest() == full.digest() != half.digest()
    assert half.plain.get_parameter("0.weight").dtype == torch.float32
    assert "mixed precision bf16" in (tmp_path / "bf16" / "log.txt").read_text()


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(toy_config(steps=2, trackers=("tensorboard",)), tmp_path)
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_profile_of_steps(tmp_path: Path) -> None:
    train(toy_config(steps=7, log_every=1), tmp_path, profile=3)
    lines = (tmp_path / "profile.txt").read_text().splitlines()
    assert lines[0].startswith("3 steps of ")
    rows = {line[:44].strip(): line[44:].split() for line in lines if line[44:].strip()}
    names = ("data", "forward", "backward", "optimizer", "average", "logging", "not marked")
    shares = {name: float(rows[name][1].rstrip("%")) for name in names}
    assert all(share > 0 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(100, abs=2)
    assert float(rows["aten::convolution_backward"][2]) == 1  # calls per step
    with pytest.raises(ValueError, match="profile: got 0"):
        train(toy_config(steps=8, log_every=1), tmp_path, profile=0)
    with pytest.raises(ValueError, match=r"got 3 \(allowed: 3 less than the 1 steps that are left"):
        train(toy_config(steps=8, log_every=1), tmp_path, profile=3)


def test_time_outside_steps_is_reported(tmp_path: Path) -> None:
    train(toy_config(steps=4, log_every=1, eval_every=2, save_every=2), tmp_path)
    shares = records(tmp_path, "evaluation_share", "saving_share")
    assert min(shares[2]) > max(max(shares[n]) for n in (0, 1, 3))
    assert "time of this session: " in (tmp_path / "log.txt").read_text()

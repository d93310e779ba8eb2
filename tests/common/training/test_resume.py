"""Runs that stop and go on: bit for bit, or refused."""

from __future__ import annotations

import io
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lambda24.common.data.augmentation import AugmentConfig
from lambda24.common.data.cut import Cut
from lambda24.common.data.dataset import ImageDataset
from lambda24.common.data.shards import Row, ShardedSplit
from lambda24.common.data.streaming import StreamedImages, StreamingConfig
from lambda24.common.optim.schedule import lr_at
from tests.common.training.toy_run import ToyTask, program, records, toy_config, toy_data, train


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[ToyTask, Path]:
    """An uninterrupted run of 6 steps: 72 positions, so two and a bit epochs of 32 images."""
    run = tmp_path_factory.mktemp("whole")
    task, _ = train(toy_config(log_every=2, save_every=3), run)
    return task, run


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in a process with two workers, killed in its fifth step."""
    run = tmp_path_factory.mktemp("killed")
    process = program(
        {
            "configs": [{"log_every": 2, "save_every": 3}],
            "run": str(run),
            "out": str(run / "never.pt"),
            "options": {"kill_at": 4, "num_workers": 2},
        }
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_000003"]
    return run


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_run_resumes_bit_for_bit(
    whole: tuple[ToyTask, Path], killed: Path, tmp_path: Path, num_workers: int
) -> None:
    run = tmp_path / "resumed"
    shutil.copytree(killed, run)
    resumed, _ = train(toy_config(log_every=2, save_every=3), run, num_workers=num_workers)
    assert len(resumed.seen) == 3
    assert resumed.seen == whole[0].seen[3:]
    assert resumed.digest() == whole[0].digest()
    kept = records(run, "step", "loss", "gradient_norm")
    assert kept == records(whole[1], "step", "loss", "gradient_norm")
    assert [line[0] for line in kept] == [2, 4, 6]
    sample = "samples/step_000006.png"
    assert (run / sample).read_bytes() == (whole[1] / sample).read_bytes()


def test_digest_sees_the_seed_of_each_step(
    whole: tuple[ToyTask, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resume test would notice a wrong dropout mask."""
    monkeypatch.setattr("lambda24.common.training.loop.hash_integer", lambda *values: 5)
    task, _ = train(toy_config(log_every=2, save_every=3), tmp_path / "other")
    assert task.seen == whole[0].seen
    assert task.digest() != whole[0].digest()


def test_longer_run_goes_on(tmp_path: Path) -> None:
    train(toy_config(steps=2), tmp_path)
    task, _ = train(toy_config(steps=5, log_every=1), tmp_path)
    assert len(task.seen) == 3
    assert [line[0] for line in records(tmp_path, "step", "loss")] == [2, 3, 4, 5]


@pytest.mark.parametrize(("schedule", "same"), [("constant", True), ("cosine", False)])
def test_more_steps_than_planned(tmp_path: Path, schedule: str, same: bool) -> None:
    """A constant rate does not know the end; a cosine jumps to the new curve, which is logged."""
    options = {"schedule": schedule, "accumulation": 2, "log_every": 1}
    whole, _ = train(toy_config(steps=6, **options), tmp_path / "whole")
    train(toy_config(steps=4, **options), tmp_path / "run")
    config = toy_config(steps=6, **options)
    longer, _ = train(config, tmp_path / "run")
    assert longer.seen == whole.seen[8:]
    assert (longer.digest() == whole.digest()) is same
    rates = [line[0] for line in records(tmp_path / "run", "lr")]
    planned = [lr_at(config.optimizer, step, 4) for step in range(4)]
    assert rates == pytest.approx([*planned, *(lr_at(config.optimizer, n, 6) for n in (4, 5))])
    warning = "loop.steps was 4 and is now 6: schedules that depend on it jump to the new curve"
    assert warning in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_accumulating_run_resumes_bit_for_bit(tmp_path: Path, num_workers: int) -> None:
    config = toy_config(steps=6, accumulation=3, save_every=2)
    whole, _ = train(config, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="step 3"):
        train(config, tmp_path / "run", poison=(3, "loss"))
    resumed, _ = train(config, tmp_path / "run", num_workers=num_workers)
    assert resumed.seen == whole.seen[6:]
    assert resumed.digest() == whole.digest()


class StreamedLevels(ShardedSplit):
    """Four shards of five grey images; the third of each is damaged."""

    def __init__(self) -> None:
        self.label_names = tuple("0123456789")

    @property
    def num_shards(self) -> int:
        return 4

    def rows(self, shard: int, start: int = 0) -> Iterator[Row]:
        for number in range(start, 5):
            buffer = io.BytesIO()
            Image.new("L", (8, 8), 50 * shard + 10 * number).save(buffer, "PNG")
            yield Row(b"" if number == 2 else buffer.getvalue(), number)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streaming_run_resumes_bit_for_bit(tmp_path: Path, num_workers: int) -> None:
    streaming = StreamingConfig(lanes=2, shuffle_buffer=3)
    data = StreamedImages(
        StreamedLevels(), streaming, Cut(8, augment=AugmentConfig(rotation=30), flip=True)
    )
    config = toy_config(steps=8, accumulation=3, save_every=3, log_every=2)
    whole, _ = train(config, tmp_path / "whole", data=data)
    with pytest.raises(RuntimeError, match="step 5"):
        train(config, tmp_path / "run", data=data, poison=(5, "loss"))
    resumed, _ = train(config, tmp_path / "run", data=data, num_workers=num_workers)
    assert resumed.seen == whole.seen[9:]
    assert resumed.digest() == whole.digest()
    skipped = records(tmp_path / "run", "step", "skipped_images")
    assert skipped == records(tmp_path / "whole", "step", "skipped_images")
    assert skipped[-1][1] >= 16


def test_other_config_is_refused(tmp_path: Path) -> None:
    train(toy_config(steps=2), tmp_path)
    with pytest.raises(ValueError, match=r"dropout: the run has 0.2, got 0.5"):
        train(toy_config(steps=4, dropout=0.5), tmp_path)
    with pytest.raises(ValueError, match=r"loop.batch_size: the run has 12, got 8"):
        train(toy_config(steps=4, batch_size=8), tmp_path)


def test_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(toy_config(steps=2), tmp_path)
    monkeypatch.setattr(ImageDataset, "__len__", lambda self: 31)
    with pytest.raises(ValueError, match=r"started on 32 training images, got 31"):
        train(toy_config(steps=4), tmp_path)


def test_a_run_and_its_data_may_move(whole: tuple[ToyTask, Path], tmp_path: Path) -> None:
    """Contents are compared, not paths."""
    config = toy_config(log_every=2, save_every=3)
    with pytest.raises(RuntimeError, match="step 4"):
        train(config, tmp_path / "run", poison=(4, "loss"))
    (tmp_path / "run").rename(tmp_path / "moved")
    elsewhere = replace(config, data=replace(config.data, path="elsewhere"))
    resumed, _ = train(elsewhere, tmp_path / "moved")
    assert resumed.digest() == whole[0].digest()
    other = toy_data(elsewhere)
    other.labels = other.labels.flip(0)
    longer = replace(elsewhere, loop=replace(config.loop, steps=8))
    with pytest.raises(ValueError, match="was started on other data: fingerprint of the data"):
        train(longer, tmp_path / "moved", data=other)

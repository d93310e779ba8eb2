"""Run folders, speed, and the lines that are printed."""

from __future__ import annotations

import logging
import mmap
from pathlib import Path

import pytest
import torch

from lambda24.common.config import config_class, to_dict
from lambda24.common.training.loop import LoopConfig
from lambda24.common.training.tracking import (
    FREE_ENDINGS,
    Meter,
    RunFolder,
    flatten,
    memory_in_use,
    progress_text,
    time_text,
)


@config_class
class Config:
    loop: LoopConfig = LoopConfig(steps=10, batch_size=4)
    width: int = 3
    names: tuple[str, ...] = ()


def test_config_is_compared(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match=r"no config\.yaml"):
        folder.check_config(Config())
    folder.start(Config(), 0)
    folder.check_config(Config())
    longer = LoopConfig(steps=20, batch_size=4, save_every=3, keep_checkpoints=7, log_every=1)
    folder.check_config(Config(loop=longer))
    with pytest.raises(ValueError, match="started with another config") as caught:
        folder.check_config(Config(loop=LoopConfig(steps=10, batch_size=8), names=("a",)))
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert lines == [
        "loop.batch_size: the run has 4, got 8",
        "names: the run has [], got ['a']",
    ]


def test_not_all_differences_are_shown(tmp_path: Path) -> None:
    """The config of another kind of run shares hardly a key."""
    folder = RunFolder(tmp_path)
    folder.path.mkdir(exist_ok=True)
    folder.config_file.write_text("\n".join(f"key_{number}: {number}" for number in range(20)))
    with pytest.raises(ValueError, match="started with another config") as caught:
        folder.check_config(Config())
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert lines[0] == "key_0: the run has 0, got 'nothing'"
    assert lines[7] == "key_7: the run has 7, got 'nothing'"
    assert len(lines) == 9
    differing = 20 + len(
        [key for key in flatten(to_dict(Config())) if not key.endswith(FREE_ENDINGS)]
    )
    assert lines[8] == f"and {differing - 8} more"


def test_metrics_are_cut_back_on_resume(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.start(Config(), 0)
    for step in range(1, 6):
        folder.append_metrics({"step": step, "loss": 1 / step})
    with open(folder.metrics_file, "a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    folder.start(Config(), 3)
    folder.append_metrics({"step": 4, "loss": float("nan")})
    assert [record["step"] for record in folder.metrics()] == [1, 2, 3, 4]
    assert folder.metrics()[2] == {"step": 3, "loss": 1 / 3}
    assert folder.metrics()[3]["loss"] is None


def test_log_goes_to_the_file_only_inside(tmp_path: Path) -> None:
    logger = logging.getLogger("lambda24.anything")
    folder = RunFolder(tmp_path)
    with folder.logging(enabled=True):
        logger.info("inside %d", 1)
        logging.getLogger("elsewhere").warning("not ours")
    logger.info("outside")
    with folder.logging(enabled=False):
        logger.info("another rank")
    text = (tmp_path / "log.txt").read_text()
    assert "INFO lambda24.anything: inside 1" in text
    assert text.count("\n") == 1
    assert not logging.getLogger("lambda24").handlers


def test_meter_leaves_out_the_first_steps() -> None:
    meter = Meter(batch_size=32, total_steps=100)
    for _ in range(3):
        meter.add(100.0, 99.0)
    assert meter.images_per_second == 0
    assert meter.data_wait == 0
    assert meter.seconds_left(3) is None
    for _ in range(4):
        meter.add(2.0, 0.5)
    assert meter.images_per_second == 16
    assert meter.data_wait == 0.25
    assert meter.seconds_left(7) == 93 * 2.0


def test_meter_of_an_interval() -> None:
    meter = Meter(batch_size=10, total_steps=100)
    for _ in range(5):
        meter.add(1.0, 0.0)
    meter.add_other("saving", 5.0)
    assert meter.share("saving") == 0.5
    meter.restart()
    assert meter.images_per_second == meter.share("saving") == 0
    meter.add(0.5, 0.25)
    meter.add_other("evaluation", 1.5)
    assert meter.images_per_second == 20
    assert meter.data_wait == 0.5
    assert meter.share("evaluation") == 0.75
    assert meter.seconds_left(50) == pytest.approx(50 * 2.5 / 3)  # of all counted steps
    assert meter.spent == {"training": 5.25, "data": 0.25, "saving": 5.0, "evaluation": 1.5}
    text = time_text(meter.spent)
    assert (
        text == "training 5.2 s (44%), saving 5.0 s (42%), evaluation 1.5 s (12%), data 0.2 s (2%)"
    )
    assert "data wait 50%  evaluation 75%  ETA" in progress_text({}, meter, 50, 0)


def test_config_of_a_run_that_lacks_a_key(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.start(Config(), 0)
    text = folder.config_file.read_text()
    folder.config_file.write_text(text.replace("width: 3\n", ""))
    folder.check_config(Config())
    with pytest.raises(ValueError, match="width: the run has 3, got 4"):
        folder.check_config(Config(width=4))


def test_progress_text() -> None:
    meter = Meter(batch_size=10, total_steps=200)
    text = progress_text({"loss": 0.123456, "nll_0": 9.0}, meter, 5, 3 * 2**29)
    assert text == "step 5/200  loss 0.1235  0 images/s  data wait 0%  ETA ?  1.50 GiB"
    for _ in range(4):
        meter.add(0.5, 0.1)
    text = progress_text({}, meter, 100, 0)
    assert text == "step 100/200  20 images/s  data wait 20%  ETA 00:50  0.00 GiB"


def test_memory_is_of_this_process() -> None:
    before = memory_in_use(torch.device("cpu"))
    # Straight from the system: an allocator may have kept pages of earlier tests.
    block = torch.frombuffer(mmap.mmap(-1, 64 * 2**20), dtype=torch.uint8).fill_(1)
    assert memory_in_use(torch.device("cpu")) - before > 50 * 2**20
    del block


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {
        "a.b": 1,
        "a.c.d": [2],
        "e": None,
    }

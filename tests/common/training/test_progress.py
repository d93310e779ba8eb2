"""Speed, and the lines that are printed."""

from __future__ import annotations

import mmap

import pytest
import torch

from lambda24.common.training.progress import Meter, memory_in_use, progress_text, time_text


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

"""What a run shows: speed, where the wall time went, memory."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping

import psutil
import torch
from tqdm import tqdm

WARMUP_STEPS = 3


class Meter:
    """Speed of a run since the last `restart`, and where the wall time went.

    The first steps of a process are slow (allocation, compilation, filling of workers) and do not
    count towards the speed; evaluation and saving never do.
    """

    def __init__(self, batch_size: int, total_steps: int) -> None:
        self.batch_size, self.total_steps = batch_size, total_steps
        self._warmup = WARMUP_STEPS
        self._all_steps, self._all_seconds = 0, 0.0
        self.spent: dict[str, float] = {}  # activity: seconds since the process began the run
        self.restart()

    def restart(self) -> None:
        """Begins a new interval; `seconds_left` and `spent` go on."""
        self._steps = 0
        self._seconds = self._waited = 0.0
        self._interval: dict[str, float] = {}

    def add(self, seconds: float, waited: float) -> None:
        """Counts one step of `seconds`, of which `waited` went into the wait for its batch."""
        self.add_other("training", seconds - waited)
        self.add_other("data", waited)
        if self._warmup:
            self._warmup -= 1
            return
        self._steps += 1
        self._seconds += seconds
        self._waited += waited
        self._all_steps += 1
        self._all_seconds += seconds

    def add_other(self, activity: str, seconds: float) -> None:
        """Counts time that is no step: "evaluation", "saving", "logging"."""
        for sums in (self.spent, self._interval):
            sums[activity] = sums.get(activity, 0.0) + seconds

    @property
    def images_per_second(self) -> float:
        """Over all processes; 0 while nothing is counted."""
        return self.batch_size * self._steps / self._seconds if self._seconds else 0.0

    @property
    def data_wait(self) -> float:
        """Share of the counted time in [0, 1]."""
        return self._waited / self._seconds if self._seconds else 0.0

    def share(self, activity: str) -> float:
        """Share of the interval's wall time, warm-up included, in [0, 1]."""
        total = sum(self._interval.values())
        return self._interval.get(activity, 0.0) / total if total else 0.0

    def seconds_left(self, step: int) -> float | None:
        """Training time after `step` finished steps; None while nothing is counted."""
        if not self._all_steps:
            return None
        return (self.total_steps - step) * self._all_seconds / self._all_steps


def progress_text(scalars: Mapping[str, float], meter: Meter, step: int, memory: int) -> str:
    """One line: step, scalars, speed, shares of other work, time left, memory (bytes).

    Scalars of a scale, whose names end in its number, are for metrics.jsonl alone.
    """
    left = meter.seconds_left(step)
    parts = [f"step {step}/{meter.total_steps}"]
    shown = {name: v for name, v in scalars.items() if not re.search(r"_\d+$", name)}
    parts += [f"{name} {value:.4g}" for name, value in shown.items()]
    parts.append(f"{meter.images_per_second:.0f} images/s")
    parts.append(f"data wait {meter.data_wait:.0%}")
    for activity in ("evaluation", "saving"):
        if meter.share(activity) >= 0.005:
            parts.append(f"{activity} {meter.share(activity):.0%}")
    parts.append("ETA " + ("?" if left is None else tqdm.format_interval(math.ceil(left))))
    parts.append(f"{memory / 2**30:.2f} GiB")
    return "  ".join(parts)


def time_text(spent: Mapping[str, float]) -> str:
    """Where the wall time went: `training 8 s (80 %), data 2 s (20 %)`."""
    total = sum(spent.values()) or 1.0
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value:.1f} s ({value / total:.0%})" for name, value in ordered)


def memory_in_use(device: torch.device) -> int:
    """Bytes: the peak of the CUDA allocator, or this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


class Stopwatch:
    """Seconds since the last call."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def __call__(self) -> float:
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        return elapsed

"""What a run shows and leaves behind: its folder, log files, metrics, and speed.

    config.yaml  metrics.jsonl  log.txt  samples/step_N.png  checkpoints/step_N/

Only the main process writes. Knows nothing of what is trained.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm

from lambda24.common.config import from_dict, read_yaml_text, save_config, to_dict
from lambda24.common.training.checkpoint import Checkpoints

LOGGER = logging.getLogger("lambda24")
# A run may go on with other values of these: they change how long it runs, what it reports and how
# much memory it takes, but no gradient.
FREE_KEYS = ("steps", "log_every", "eval_every", "save_every", "sample_every", "keep_checkpoints")
FREE_ENDINGS = (
    *(f"loop.{key}" for key in FREE_KEYS),
    "loop.trackers",
    "num_workers",
    "checkpoint_activations",
)
WARMUP_STEPS = 3
MAX_DIFFERENCES = 8
"""How many differing keys of a config an error shows; two kinds of run differ in dozens."""


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = Checkpoints(self.path / "checkpoints")
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"

    def sample_file(self, step: int) -> Path:
        return self.path / "samples" / f"step_{step:06d}.png"

    def check_config(self, config: object) -> None:
        """Refuses to go on with a run that was started with another config.

        The number of steps, intervals of the loop, trackers and workers may differ.

        Raises:
            ValueError: names the first differing keys with both values.
        """
        if not self.config_file.is_file():
            raise ValueError(f"{self.path} has checkpoints but no {self.config_file.name}")
        data = read_yaml_text(self.config_file.read_text(encoding="utf-8")) or {}
        with suppress(ValueError):  # keys that a run did not have yet are at their defaults
            data = to_dict(from_dict(type(config), data))
        stored, present = flatten(data), flatten(to_dict(config))
        absent = "nothing"
        differing = [
            f"{key}: the run has {stored.get(key, absent)!r}, got {present.get(key, absent)!r}"
            for key in {**stored, **present}
            if stored.get(key, absent) != present.get(key, absent)
            and not key.endswith(FREE_ENDINGS)
        ]
        if differing:
            shown = differing[:MAX_DIFFERENCES]
            if len(differing) > len(shown):
                shown.append(f"and {len(differing) - len(shown)} more")
            raise ValueError(
                f"{self.path} was started with another config; use another run folder, or:\n  "
                + "\n  ".join(shown)
            )

    def start(self, config: object, step: int) -> None:
        """Writes the config and forgets metrics later than `step`, which a resumed run repeats."""
        self.path.mkdir(parents=True, exist_ok=True)
        save_config(config, self.config_file)
        records = [record for record in self.metrics() if record["step"] <= step]
        temporary = self.metrics_file.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
        os.replace(temporary, self.metrics_file)

    def metrics(self) -> list[dict[str, Any]]:
        """All records, oldest first; a last line cut off by a kill is ignored."""
        if not self.metrics_file.is_file():
            return []
        lines = self.metrics_file.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line]

    def append_metrics(self, record: Mapping[str, float]) -> None:
        """Adds one line; numbers that are not finite become null."""
        clean = {key: value if math.isfinite(value) else None for key, value in record.items()}
        with open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")

    @contextmanager
    def logging(self, *, enabled: bool) -> Iterator[None]:
        """Sends this project's log messages to log.txt and, above any progress bar, to stderr."""
        if not enabled:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers: list[logging.Handler] = [file, _ConsoleHandler()]
        level = LOGGER.level
        LOGGER.setLevel(logging.INFO)
        for handler in handlers:
            LOGGER.addHandler(handler)
        try:
            yield
        finally:
            LOGGER.setLevel(level)
            for handler in handlers:
                LOGGER.removeHandler(handler)
            file.close()


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


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


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class Stopwatch:
    """Seconds since the last call."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def __call__(self) -> float:
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        return elapsed

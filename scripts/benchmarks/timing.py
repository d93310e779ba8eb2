"""Time and memory of functions that are compared with each other in one process."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Run = Callable[[], object]
Clock = Callable[[], float]
# On a machine that others use, CPU time is the fairer clock; all threads' time adds up in it.
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds_of(run: Run, clock: Clock = time.perf_counter, at_least: float = 0.0) -> float:
    """Mean seconds of a call, over as many calls as fill `at_least` seconds (one or more)."""
    calls, start = 0, clock()
    while True:
        run()
        calls, passed = calls + 1, clock() - start
        if passed >= at_least:
            return passed / calls


def interleaved(
    runs: Mapping[str, Run],
    repeats: int,
    clock: Clock = time.perf_counter,
    at_least: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of each run in each of `repeats` rounds; a round times every run once, in turn.

    What disturbs the machine for a while then disturbs all of them: compare within rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(seconds_of(run, clock, at_least))
    return seconds


def median_ratio(first: list[float], second: list[float]) -> float:
    """Median over rounds of `first / second`."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def _status(field: str) -> int:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if field in row)
    return int(line.split()[1]) * 1024


def peak_bytes_of(run: Run) -> int | None:
    """Growth of the resident set at its peak during a call; None where Linux does not tell."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # restart the high-water mark
        before = _status("VmRSS")
        run()
        return _status("VmHWM") - before
    except OSError:
        return None

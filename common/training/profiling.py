"""Where the time of a training step goes: a table of its sections and its most expensive operators.

The loop, the optimizer and the quantizers mark their work with `torch.profiler.record_function`;
this reads the marks back. Nothing is measured unless a `StepProfile` runs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

SECTIONS = (
    "data",
    "forward",
    "backward",
    "optimizer",
    "average",
    "logging",
    "evaluation",
    "saving",
)
"""Marks that do not contain one another; other marks are parts of them."""

FIRST_STEP = 3  # the steps before it allocate, compile and fill workers
NUM_OPERATORS = 15


class StepProfile:
    """Profiles `steps` steps of a run, from its fourth on, and writes the table to `file`.

    Call it after each step.
    """

    def __init__(self, steps: int, file: Path) -> None:
        if steps < 1:
            raise ValueError(f"steps to profile: got {steps} (allowed: 1 or more)")
        self.steps, self.file = steps, file
        self._done = 0
        self._started = 0.0
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(activities=activities)

    def __call__(self) -> None:
        self._done += 1
        if self._done == FIRST_STEP:
            self._profiler.start()
            self._started = time.perf_counter()
        elif self._done == FIRST_STEP + self.steps:
            seconds = time.perf_counter() - self._started
            self._profiler.stop()
            self.file.write_text(breakdown(self._profiler.key_averages(), self.steps, seconds))


def breakdown(events: Any, steps: int, seconds: float) -> str:
    """Table of milliseconds per step and shares of the wall time `seconds` of `steps` steps.

    Args:
        events: what `torch.profiler.profile.key_averages` returns. Times are of the process's
            thread; work that a CUDA device does meanwhile is under "device".
    """
    marks = {event.key: event for event in events if event.is_user_annotation}
    covered = sum(marks[name].cpu_time_total for name in SECTIONS if name in marks) * 1e-6
    lines = [f"{steps} steps of {1e3 * seconds / steps:.1f} ms (measuring included)", ""]
    lines.append(_row("section", "ms/step", "share", "device ms"))
    for name in SECTIONS:
        if name in marks:
            lines.append(_event_row(name, marks[name], steps, seconds))
    rest = seconds - covered
    lines.append(_row("not marked", f"{1e3 * rest / steps:.2f}", f"{rest / seconds:.1%}", ""))
    parts = {name: event for name, event in marks.items() if name not in SECTIONS}
    if parts:
        lines += ["", _row("part of a section", "ms/step", "share", "device ms")]
        ordered = sorted(parts.items(), key=lambda item: -item[1].cpu_time_total)
        lines += [_event_row(name, event, steps, seconds) for name, event in ordered]
    operators = sorted(
        (event for event in events if not event.is_user_annotation),
        key=lambda event: -event.self_cpu_time_total,
    )
    lines += ["", _row("operator, itself", "ms/step", "share", "calls/step")]
    for event in operators[:NUM_OPERATORS]:
        own = event.self_cpu_time_total * 1e-6
        time_text, share = f"{1e3 * own / steps:.2f}", f"{own / seconds:.1%}"
        lines.append(_row(event.key, time_text, share, f"{event.count / steps:.1f}"))
    return "\n".join(lines) + "\n"


def _event_row(name: str, event: Any, steps: int, seconds: float) -> str:
    spent, device = event.cpu_time_total * 1e-6, event.device_time_total * 1e-6
    text = f"{1e3 * device / steps:.2f}" if device else ""
    return _row(name, f"{1e3 * spent / steps:.2f}", f"{spent / seconds:.1%}", text)


def _row(name: str, *cells: str) -> str:
    return f"{name[:44]:<44}" + "".join(f"{cell:>12}" for cell in cells)

"""What ends a run from outside: signals, which let the step finish, and a second start.

A scheduler's SIGTERM or SIGUSR1 and the keyboard's SIGINT are noted; the loop finishes its step,
saves, and the process ends with 128 plus the signal's number. A second SIGINT ends it at once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from filelock import FileLock, SoftFileLock, Timeout

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LOCK_FILE = ".lock"
HOLDER_FILE = ".lock_holder.json"


class StopSignal:
    """The signal that asked this process to stop, 0 while none has."""

    def __init__(self) -> None:
        self.number = 0

    @contextmanager
    def noted(self) -> Iterator[StopSignal]:
        """Within, signals are noted; outside the main thread they do what they always do."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def only_start(run: Path) -> Iterator[None]:
    """Holds the run folder for this process.

    The operating system frees the lock when a process ends, however it ends. File systems without
    locks get a file instead, which a killed process leaves behind.

    Raises:
        ValueError: another process holds it; says which, where, and since when.
    """
    with _acquired(run / LOCK_FILE, run / HOLDER_FILE):
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
        (run / HOLDER_FILE).write_text(json.dumps(holder), encoding="utf-8")
        try:
            yield
        finally:
            (run / HOLDER_FILE).unlink(missing_ok=True)


@contextmanager
def _acquired(file: Path, holder: Path) -> Iterator[None]:
    for lock in (FileLock(file), SoftFileLock(file.with_suffix(".soft"))):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(_refusal(lock, holder)) from None
        except NotImplementedError:  # a file system without locks
            continue
        try:
            yield
        finally:
            lock.release()
        return


def _refusal(lock: FileLock | SoftFileLock, holder: Path) -> str:
    try:
        found = json.loads(holder.read_text(encoding="utf-8"))
        who = f"process {found['process']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    text = f"run {str(holder.parent)!r} is being trained by {who}: one start at a time"
    if isinstance(lock, SoftFileLock):
        text += f" (if that process is gone, remove {lock.lock_file})"
    return text

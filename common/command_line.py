"""How a program ends: mistakes of its user with one line, its own faults with a traceback."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

OURS = ("lambda24", "__main__")


def run_program(main: Callable[[], object]) -> None:
    """Calls `main`; a ValueError that this project raised ends the process with "error: ...".

    Errors from inside other libraries keep their traceback, and `python -X dev` keeps all.

    Raises:
        SystemExit: with the message, which makes the exit code 1.
    """
    try:
        main()
    except ValueError as error:
        if sys.flags.dev_mode or not _is_ours(error):
            raise
        raise SystemExit(f"error: {error}") from None


def _is_ours(error: ValueError) -> bool:
    """Whether the line that raised is in this package or in the program itself."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals["__name__"].partition(".")[0] in OURS

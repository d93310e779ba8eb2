"""Tests run in several processes (pytest-xdist), so each computes with one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def _no_precision_of_an_earlier_test() -> None:
    """Accelerate keeps a process's number format: a run in bf16 would leave it to all others."""
    if AcceleratorState._shared_state.get("_mixed_precision", "no") != "no":
        AcceleratorState._reset_state()

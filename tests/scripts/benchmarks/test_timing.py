from __future__ import annotations

import sys

import pytest

from lambda24.scripts.benchmarks.timing import interleaved, median_ratio, peak_bytes_of, seconds_of


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_seconds_of_repeats_short_runs() -> None:
    clock, calls = FakeClock(), []

    def run() -> None:
        calls.append(clock.now)
        clock.now += 0.25

    assert seconds_of(run, clock) == 0.25
    assert len(calls) == 1
    assert seconds_of(run, clock, at_least=0.9) == 0.25
    assert len(calls) == 5


def test_rounds_are_interleaved() -> None:
    clock, order = FakeClock(), []

    def run(name: str, seconds: float) -> None:
        order.append(name)
        clock.now += seconds

    runs = {"a": lambda: run("a", 1.0), "b": lambda: run("b", 3.0)}
    found = interleaved(runs, 2, clock)
    assert order == ["a", "b", "a", "b"]
    assert found == {"a": [1.0, 1.0], "b": [3.0, 3.0]}


def test_median_ratio_pairs_rounds() -> None:
    assert median_ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_is_what_a_run_adds() -> None:
    def run() -> None:
        bytearray(b"x" * (64 << 20))

    peak = peak_bytes_of(run)
    if peak is not None:
        assert 60 << 20 < peak < 200 << 20

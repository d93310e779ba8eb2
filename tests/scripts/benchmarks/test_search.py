from __future__ import annotations

import pytest
import torch

from lambda24.scripts.benchmarks import search as search_benchmark
from lambda24.scripts.benchmarks.brute_force import (
    HalfSearch,
    dense_search,
    faiss_search,
    tiled_search,
)
from lambda24.scripts.benchmarks.machine_speed import CountElements, Speed
from lambda24.tokenizer.lattices import leech


def test_brute_force_finds_the_codes_of_the_structured_search() -> None:
    z = torch.randn(60, 24, generator=torch.Generator().manual_seed(0))
    codes, expected = leech.codebook(torch.float32), leech.nearest(z, method="eager")
    searches = [HalfSearch(torch.float32), tiled_search(codes, 25, 5000), faiss_search(codes)]
    for search in searches:
        if search is not None:
            assert torch.equal(search(z), expected)
    assert torch.equal(dense_search(codes)(z[:20]), expected[:20])


def test_half_search_gives_the_largest_product() -> None:
    z = torch.randn(50, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    best, indices = HalfSearch(torch.float64).best(z)
    codes = leech.codebook().double()
    torch.testing.assert_close(best, (z @ codes.T).amax(1), rtol=1e-14, atol=0)
    torch.testing.assert_close(best, (z * codes[indices]).sum(1), rtol=1e-14, atol=0)


def test_exactness_counts_and_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_benchmark, "has_kernel", lambda: False)
    results = {part.distribution: part for part in search_benchmark.exactness(70)}
    assert len(results) == 7
    assert all(part.count == 10 and part.loss <= 1e-6 for part in results.values())
    assert results["gaussian"].unlike == 0
    assert results["integers"].unlike == 0  # exact ties: the lowest index in both

    def wrong(z: torch.Tensor, method: str) -> torch.Tensor:
        return torch.zeros(len(z), dtype=torch.int64)

    monkeypatch.setattr(leech, "nearest", wrong)
    part = next(iter(search_benchmark.exactness(70)))
    assert part.unlike == 10
    assert part.loss > 0.1


def test_exactness_goes_on_over_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_benchmark, "has_kernel", lambda: False)
    monkeypatch.setattr(search_benchmark, "DISTRIBUTIONS", ("gaussian", "sparse"))
    parts = list(search_benchmark.exactness(50, chunk=20))
    assert [part.count for part in parts] == [20, 5, 20, 5]
    with pytest.raises(ValueError, match="distribution must be one of"):
        search_benchmark.draw("cauchy", 1, torch.Generator())


def test_ratios_and_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_benchmark, "eager_elements", lambda: 1000.0)
    monkeypatch.setattr(search_benchmark, "TILES", ((256, 1024),))
    z = torch.randn(64, 24, generator=torch.Generator().manual_seed(2))
    speed = Speed(in_cache=1e9, product=1e11, in_registers=1e11)
    ticks = iter(range(10_000))
    timings = search_benchmark.compare(
        z, speed, repeats=1, brute_vectors=32, clock=lambda: float(next(ticks))
    )
    rows = {row.method: row for row in timings}
    eager = rows[search_benchmark.EAGER]
    assert eager.seconds == 1  # a tick between two looks at the clock
    assert eager.times_tiled == 2  # the same tick for half the vectors
    assert eager.of_limit == pytest.approx(1000 / 1e9 * 64)
    tiled = next(row for name, row in rows.items() if name.startswith("tiles"))
    assert tiled.method.endswith("(32 of 64, scaled)")
    assert tiled.of_limit == pytest.approx(2 * 24 * 196_560 / 1e11 * 64 / 2)


def test_elements_are_counted() -> None:
    x = torch.rand(10, 20)
    with CountElements() as count:
        x[:5].t() + 1  # a view costs nothing
        x.amax(1)
    assert count.total == 100 + 200
    assert 10_000 < search_benchmark.eager_elements() < 100_000

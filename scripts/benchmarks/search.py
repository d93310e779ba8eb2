"""Speed, memory and exactness of the Leech lattice's nearest-code search, against brute force."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lambda24.scripts.benchmarks.brute_force import (
    HalfSearch,
    Search,
    dense_search,
    faiss_search,
    tiled_search,
)
from lambda24.scripts.benchmarks.machine_speed import CountElements, Speed
from lambda24.scripts.benchmarks.timing import (
    Clock,
    Run,
    interleaved,
    median_ratio,
    peak_bytes_of,
    seconds_of,
)
from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.lattices.codes import nearest_rows
from lambda24.tokenizer.lattices.search.nearest import Method, has_kernel

TILES = ((256, 1024), (256, 2048), (256, 4096), (680, 2048), (1024, 8192))  # vectors, codes
DENSE_LIMIT = 2**30  # bytes of scores above which one dense product is left out
EAGER, KERNEL = "structured, eager", "structured, kernel"
# Additions and maxima a vector: 6,100 of the convolution, 2,000 of type 3, 2,000 of types 2 and 4.
STRUCTURED_OPERATIONS = 10_100


@dataclass(frozen=True)
class Timing:
    """One method at one size; times are medians over interleaved rounds."""

    method: str
    size: int
    seconds: float
    times_tiled: float  # how many times as fast as the best tiled brute force
    of_limit: float | None  # part of the rate at which this machine could do its arithmetic
    peak_bytes: int | None

    def __str__(self) -> str:
        memory = "not measured" if self.peak_bytes is None else f"{self.peak_bytes / 2**20:.0f} MiB"
        limit = "-" if self.of_limit is None else f"{100 * self.of_limit:.0f} %"
        return (
            f"{self.method:48s} {self.size:8d} {1e3 * self.seconds:11.2f} ms "
            f"{self.size / self.seconds:11.0f} /s {self.times_tiled:8.1f} x {limit:>6s}  {memory}"
        )


def eager_elements() -> float:
    """Elements a vector that the eager search's operations go through."""
    z = torch.randn(680, leech.DIM, generator=torch.Generator().manual_seed(0))
    with CountElements() as count:
        leech.nearest(z, method="eager")
    return count.total / len(z)


def _limits(speed: Speed) -> dict[str, float | None]:
    """Seconds a vector that each kind of method's arithmetic takes at least."""
    product = 2 * leech.DIM * leech.NUM_CODES / speed.product
    compiled = STRUCTURED_OPERATIONS / speed.in_registers if speed.in_registers else None
    return {
        EAGER: eager_elements() / speed.in_cache,
        KERNEL: compiled,
        "half": product / 2,
        "all": product,
    }


def brute_force(z: Tensor, clock: Clock) -> dict[str, Search]:
    """Searches without structure that fit in memory; the first is the best of `TILES` on `z`."""
    codes = leech.codebook(torch.float32)
    tiles = {tile: tiled_search(codes, *tile) for tile in TILES}
    probe = z[:512]
    speed = {
        tile: min(seconds_of(partial(search, probe), clock) for _ in range(2))
        for tile, search in tiles.items()
    }
    best = min(speed, key=lambda tile: speed[tile])
    methods = {f"tiles of {best[0]} x {best[1]}": tiles[best]}
    methods["half the codes, in tiles"] = HalfSearch(torch.float32)
    if len(z) * leech.NUM_CODES * 4 <= DENSE_LIMIT:
        methods["one dense product"] = dense_search(codes)
    faiss = faiss_search(codes)
    if faiss is not None:
        methods["FAISS IndexFlatIP"] = faiss
    return methods


def _in_new_thread(run: Run) -> None:
    """Calls where the workspace that a thread keeps between calls is still to be made."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()


def compare(
    z: Tensor, speed: Speed, *, repeats: int, brute_vectors: int, clock: Clock
) -> list[Timing]:
    """Times every method on the vectors `(N, 24)`; ratios are medians of interleaved rounds.

    Brute force sees at most `brute_vectors` vectors; its time is scaled up, and its name says so.
    """
    part = z[:brute_vectors]
    methods: dict[str, Search] = {EAGER: partial(leech.nearest, method="eager")}
    if has_kernel():
        methods[KERNEL] = partial(leech.nearest, method="kernel")
    structured = list(methods)
    brute = brute_force(part, clock)
    methods.update(brute)
    runs: dict[str, Run] = {
        name: partial(search, z if name in structured else part) for name, search in methods.items()
    }
    for name in structured:  # tables, workspace and compiled code are made once
        runs[name]()
    seconds = interleaved(runs, repeats, clock, at_least=0.1)
    for name in brute:
        seconds[name] = [value * len(z) / len(part) for value in seconds[name]]
    limits, tiled = _limits(speed), next(iter(brute))
    timings = []
    for name, run in runs.items():
        shown = name
        if name in brute and len(part) < len(z):
            shown = f"{name} ({len(part):,} of {len(z):,}, scaled)"
        kind = name if name in structured else "half" if name.startswith("half") else "all"
        middle, limit = statistics.median(seconds[name]), limits[kind]
        timings.append(
            Timing(
                method=shown,
                size=len(z),
                seconds=middle,
                times_tiled=median_ratio(seconds[tiled], seconds[name]),
                of_limit=None if limit is None else limit * len(z) / middle,
                peak_bytes=peak_bytes_of(partial(_in_new_thread, run)),
            )
        )
    return timings


def _some_codes(count: int, generator: torch.Generator) -> Tensor:
    rows = torch.randint(0, leech.NUM_CODES, (count,), generator=generator)
    return leech.codebook()[rows].float()


DISTRIBUTIONS = (
    "gaussian",
    "near a code",
    "between two codes",
    "near a corner",
    "heavy-tailed",
    "sparse",
    "integers",
)


def draw(distribution: str, count: int, generator: torch.Generator) -> Tensor:
    """`count` float32 vectors, from easy ones to exact ties."""
    normal = torch.randn(count, leech.DIM, generator=generator)
    match distribution:
        case "gaussian":
            return normal
        case "near a code":
            return _some_codes(count, generator) + 0.3 * normal
        case "between two codes":
            first, second = (_some_codes(count, generator) for _ in range(2))
            return first + second + 1e-3 * normal
        case "near a corner":
            return sum(_some_codes(count, generator) for _ in range(3)) + 0.1 * normal
        case "heavy-tailed":
            spread = torch.randn(count, leech.DIM, generator=generator).abs()
            return normal / spread.clamp_min(1e-6)  # a draw may be exactly 0
        case "sparse":
            return normal * (torch.rand(count, leech.DIM, generator=generator) < 0.3)
        case "integers":
            return torch.randint(-2, 3, (count, leech.DIM), generator=generator).float()
        case _:
            raise ValueError(f"distribution must be one of {DISTRIBUTIONS}, got {distribution!r}")


@dataclass(frozen=True)
class Exactness:
    """One method's answers on vectors of one distribution, against float64 brute force."""

    distribution: str
    method: Method
    count: int
    unlike: int  # indices that differ from float64 brute force's, see `exactness`
    loss: float  # largest relative shortfall of the returned code's product


def exactness(count: int, chunk: int = 16_384) -> Iterator[Exactness]:
    """Checks at least `count` vectors, chunk by chunk of each distribution.

    `unlike` counts a method's indices that differ from brute force's, with products in float64.
    Where brute force's pick is that of every method, it stands. Where it differs from the pick of
    one of them, the vector is compared with all 196,560 codes again, which resolves ties to the
    lowest index, and all methods are counted against that.
    """
    half, codes = HalfSearch(torch.float64), leech.codebook().double()
    methods: list[Method] = ["eager", "kernel"] if has_kernel() else ["eager"]
    size = -(-count // len(DISTRIBUTIONS))
    for number, distribution in enumerate(DISTRIBUTIONS):
        for start in range(0, size, chunk):
            generator = torch.Generator().manual_seed(number << 32 | start)
            z = draw(distribution, min(chunk, size - start), generator)
            best, expected = half.best(z.double())
            found = {method: leech.nearest(z, method=method) for method in methods}
            unlike = torch.stack([indices != expected for indices in found.values()]).any(0)
            rows = unlike.nonzero()[:, 0]
            expected[rows] = nearest_rows(z[rows].double(), codes)
            for method, indices in found.items():
                score = (z.double() * codes[indices]).sum(1)
                loss = float(((best - score) / best.clamp_min(1e-300)).max())
                count_unlike = int((indices != expected).sum())
                yield Exactness(distribution, method, len(z), count_unlike, max(loss, 0.0))

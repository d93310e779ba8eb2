"""Measures: `python scripts/benchmark.py search [--sizes 680 16384]`, `head` or `codes`.

`search` times the exact nearest-code search of the Leech lattice against brute force over all
196,560 codes: in tiles of several sizes (the best one counts), over half the codes (one of each
pair ±c), by one dense product as in the official code, and by FAISS where it is installed.
`--exactness N` checks N vectors of seven distributions against brute force instead.
`head` times the loss of the lattice softmax against a 196,560-way layer: ratios to full logits.
`codes` prints the geometry of spherical codes: minimum distance, neighbours, error on the sphere.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from generator.heads import (
    CategoricalHeadConfig,
    HeadConfig,
    LatticeHeadConfig,
    TokenLoss,
    build_head,
)
from tokenizer.lattices import leech
from tokenizer.lattices.codes import build_code, nearest_rows
from tokenizer.lattices.geometry import code_geometry
from tokenizer.tokens import TokenSpec

Search = Callable[[Tensor], Tensor]
Clock = Callable[[], float]
# On a machine that others use, CPU time is the fairer clock; all threads' time adds up in it.
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}

TILES = ((256, 1024), (256, 2048), (256, 4096), (680, 2048), (1024, 8192))  # vectors, codes
DENSE_LIMIT = 2**30  # bytes of scores above which one dense product is left out


@dataclass(frozen=True)
class Timing:
    """One method at one size; times are medians over interleaved rounds."""

    method: str
    size: int
    seconds: float
    slower_than_structured: float
    peak_bytes: int | None

    def __str__(self) -> str:
        memory = "not measured" if self.peak_bytes is None else f"{self.peak_bytes / 2**20:.0f} MiB"
        return (
            f"{self.method:32s} {self.size:8d} {1e3 * self.seconds:12.2f} ms "
            f"{self.size / self.seconds:12.0f} /s {self.slower_than_structured:8.1f} x  {memory}"
        )


def half_search(codes: Tensor) -> Search:
    """Brute force over one of each pair ±c by the absolute product, in tiles."""
    first = codes.gather(1, (codes != 0).to(torch.uint8).argmax(1, keepdim=True))[:, 0]
    rows = (first > 0).nonzero()[:, 0]
    half = codes[rows]
    opposite = leech.rank((-half * leech.SQUARED_NORM**0.5).round().to(torch.int8))

    def search(z: Tensor) -> Tensor:
        found = []
        for part in z.split(256):
            best = torch.full((len(part),), -1.0)
            column, positive = torch.zeros(len(part)).long(), torch.zeros(len(part)).bool()
            for number, tile in enumerate(half.split(2048)):
                scores = part @ tile.T
                score, index = scores.abs().max(1)
                better = score > best
                best = torch.where(better, score, best)
                column = torch.where(better, index + number * 2048, column)
                sign = scores.gather(1, index[:, None])[:, 0] > 0
                positive = torch.where(better, sign, positive)
            found.append(torch.where(positive, rows[column], opposite[column]))
        return torch.cat(found)

    return search


def faiss_search(codes: Tensor) -> Search | None:
    """FAISS' exact inner-product index, or None where FAISS is not installed."""
    if find_spec("faiss") is None:
        return None
    faiss = import_module("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(leech.DIM)
    index.add(codes.numpy())
    return lambda z: torch.from_numpy(index.search(z.numpy(), 1)[1][:, 0])


def seconds_of(search: Search, z: Tensor, clock: Clock = time.perf_counter) -> float:
    start = clock()
    search(z)
    return clock() - start


def _status(field: str) -> int:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if field in row)
    return int(line.split()[1]) * 1024


def peak_bytes_of(search: Search, z: Tensor) -> int | None:
    """Growth of the resident set at its peak during a call; None where Linux does not tell."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # restart the high-water mark
        before = _status("VmRSS")
        search(z)
        return _status("VmHWM") - before
    except OSError:
        return None


def compare(z: Tensor, *, repeats: int, brute_vectors: int, clock: Clock) -> list[Timing]:
    """Times every method on the vectors `(N, 24)`, interleaved; ratios are medians of rounds.

    Brute force sees at most `brute_vectors` vectors; its time is scaled up, and its name says so.
    """
    codes = leech.codebook(torch.float32)
    probe = z[:512]
    tiles = {
        (rows, columns): lambda z, r=rows, c=columns: nearest_rows(z, codes, rows=r, codes=c)
        for rows, columns in TILES
    }
    speed = {tile: min(seconds_of(tiles[tile], probe, clock) for _ in range(2)) for tile in tiles}
    best = min(speed, key=lambda tile: speed[tile])
    methods: dict[str, Search] = {
        "structured": leech.nearest,
        f"tiles of {best[0]} x {best[1]}": tiles[best],
        "tiles, half the codes": half_search(codes),
    }
    if len(z) * leech.NUM_CODES * 4 <= DENSE_LIMIT:
        methods["one dense product"] = lambda z: (-(z @ codes.T)).argmin(1)
    faiss = faiss_search(codes)
    if faiss is not None:
        methods["FAISS IndexFlatIP"] = faiss

    part = z[:brute_vectors]
    scale = len(z) / len(part)
    rounds: list[dict[str, float]] = []
    for _ in range(repeats):
        times = {"structured": seconds_of(methods["structured"], z, clock)}
        for name, search in methods.items():
            if name != "structured":
                times[name] = seconds_of(search, part, clock) * scale
        rounds.append(times)
    timings = []
    for name, search in methods.items():
        structured = name == "structured"
        timings.append(
            Timing(
                method=name if structured or scale == 1 else f"{name} (scaled x{scale:g})",
                size=len(z),
                seconds=statistics.median(times[name] for times in rounds),
                slower_than_structured=statistics.median(
                    times[name] / times["structured"] for times in rounds
                ),
                peak_bytes=peak_bytes_of(search, z if structured else part),
            )
        )
    return timings


def distributions(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """About `count` vectors of seven kinds, from easy ones to exact ties."""
    size = -(-count // 7)
    codes = leech.codebook().float()

    def some() -> Tensor:
        return codes[torch.randint(0, leech.NUM_CODES, (size,), generator=generator)]

    def normal() -> Tensor:
        return torch.randn(size, leech.DIM, generator=generator)

    return {
        "gaussian": normal(),
        "near a code": some() + 0.3 * normal(),
        "between two codes": some() + some() + 1e-3 * normal(),
        "near a corner": some() + some() + some() + 0.1 * normal(),
        "heavy-tailed": normal() / normal(),
        "sparse": normal() * (torch.rand(size, leech.DIM, generator=generator) < 0.3),
        "integers": torch.randint(-2, 3, (size, leech.DIM), generator=generator).float(),
    }


def exactness(count: int) -> Iterator[tuple[str, int, int, float]]:
    """By distribution: vectors, indices unlike brute force's, largest relative loss of score."""
    codes = leech.codebook().float()
    for name, z in distributions(count, torch.Generator().manual_seed(0)).items():
        found, expected = leech.nearest(z), nearest_rows(z, codes)
        scores = [(z.double() * codes[rows]).sum(1) for rows in (found, expected)]
        loss = (scores[1] - scores[0]) / scores[1].clamp_min(1e-30)
        yield name, len(z), int((found != expected).sum()), float(loss.max())


def run_search(options: argparse.Namespace) -> None:
    """The `search` subcommand."""
    torch.set_num_threads(options.threads)
    if options.exactness:
        for name, count, unlike, loss in exactness(options.exactness):
            line = f"{name:20s} {count:9d} vectors, {unlike:5d} other indices, loss <= {loss:.1e}"
            print(line, flush=True)
        return
    rounds = f"medians of {options.repeats} interleaved rounds"
    print(f"{options.threads} threads, {options.clock} time, {rounds}")
    for size in options.sizes:
        z = torch.randn(size, leech.DIM, generator=torch.Generator().manual_seed(size))
        timings = compare(
            z,
            repeats=options.repeats,
            brute_vectors=options.brute_vectors,
            clock=CLOCKS[options.clock],
        )
        print(*timings, sep="\n")


def run_codes(options: argparse.Namespace) -> None:
    """Prints a Markdown row per code."""
    print("| code | dim | size | minimum chord | kissing number | mean cosine | worst | MSE |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.names:
        size = options.size if name in ("random", "fibonacci", "leech_subset") else None
        found = code_geometry(
            build_code(name, size=size), num_samples=options.samples, num_rows=options.rows
        )
        print(
            f"| {name} | {found.dim} | {found.size:,} | {found.minimum_chord:.4f} "
            f"| {found.kissing_number:,} | {found.mean_cosine:.4f} | {found.worst_cosine:.4f} "
            f"| {found.mse:.4f} |",
            flush=True,
        )


def run_head(options: argparse.Namespace) -> None:
    """Forward and backward of a loss with Z-loss: lattice head against a 196,560-way layer."""
    spec = TokenSpec((1,), (leech.NUM_CODES,), leech.DIM, 1)
    tokens = torch.randint(leech.NUM_CODES, (options.tokens, 1))
    linear = nn.Linear(options.width, leech.NUM_CODES)

    def full(hidden: Tensor) -> TokenLoss:
        logits = linear(hidden)
        log_z = logits.logsumexp(-1)
        return TokenLoss(log_z - logits.gather(1, tokens)[:, 0], log_z)

    configs: dict[str, HeadConfig] = {
        "lattice": LatticeHeadConfig(),
        "categorical, in chunks": CategoricalHeadConfig(),
    }
    losses: dict[str, Callable[[Tensor], TokenLoss]] = {"full logits": full}
    for name, config in configs.items():
        head = build_head(config, options.width, spec)
        losses[name] = lambda hidden, head=head: head.loss(hidden, tokens)  # type: ignore[misc]
    hidden = torch.randn(options.tokens, options.width, requires_grad=True)
    clock, seconds = CLOCKS[options.clock], {}
    for name, loss in losses.items():

        def step(hidden: Tensor, loss: Callable[[Tensor], TokenLoss] = loss) -> Tensor:
            found = loss(hidden)
            (found.nll.mean() + 1e-4 * found.log_z.square().mean()).backward()
            return found.nll

        step(hidden)
        times = [seconds_of(step, hidden, clock) for _ in range(options.repeats)]
        seconds[name] = statistics.median(times) / options.tokens
        peak = (peak_bytes_of(step, hidden) or 0) / 2**20
        ratio = seconds["full logits"] / seconds[name]
        milliseconds = 1e6 * seconds[name]
        print(f"{name:24s} {milliseconds:10.1f} ms / 1,000 tokens {ratio:8.1f} x {peak:8.0f} MiB")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one subcommand; each registers its own options and function below."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    search = commands.add_parser("search", help="nearest code of the Leech lattice")
    search.add_argument("--sizes", type=int, nargs="+", default=[521, 680, 16_384])
    search.add_argument("--threads", type=int, default=torch.get_num_threads())
    search.add_argument("--repeats", type=int, default=5)
    search.add_argument("--brute-vectors", type=int, default=16_384)
    search.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    search.add_argument("--exactness", type=int, metavar="N", help="check N vectors instead")
    search.set_defaults(run=run_search)
    head = commands.add_parser("head", help="the lattice softmax against full logits")
    head.add_argument("--width", type=int, default=768)
    head.add_argument("--tokens", type=int, default=250)
    head.add_argument("--repeats", type=int, default=3)
    head.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    head.set_defaults(run=run_head)
    codes = commands.add_parser("codes", help="geometry of spherical codes")
    codes.add_argument("names", nargs="*", default=["leech", "slq_released"], metavar="NAME")
    codes.add_argument("--size", type=int, default=16_384, help="of codes of free size")
    codes.add_argument("--samples", type=int, default=8_192, help="uniform points to quantize")
    codes.add_argument("--rows", type=int, default=256, help="codes compared with all others")
    codes.set_defaults(run=run_codes)
    options = parser.parse_args(argv)
    options.run(options)


if __name__ == "__main__":
    main()

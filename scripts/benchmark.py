"""Measures: `python scripts/benchmark.py search [--sizes 680 16384]`, `head` or `codes`.

`search` times the exact nearest-code search of the Leech lattice, eager and compiled, against brute
force over all 196,560 codes: in tiles of several sizes (the best one counts), over half the codes
(one of each pair ±c), by one dense product as in the official code, and by FAISS where it is
installed. Every row says how many times as fast as the tiles it is, and what part of the speed it
reaches that its own arithmetic allows on this machine: the compiled search 10,100 additions and
maxima a vector in registers, the eager search what it does element by element in the cache, brute
force a matrix product. `--exactness N` checks N vectors of seven distributions against float64
brute force instead, and fails if any product falls short of the largest by 1e-6 of it.
`head` times the loss of the lattice softmax against a 196,560-way layer: ratios to full logits.
`codes` prints the geometry of spherical codes: minimum distance, neighbours, error on the sphere.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from common.timing import CLOCKS, peak_bytes_of, seconds_of
from generator.heads import (
    CategoricalHeadConfig,
    HeadConfig,
    LatticeHeadConfig,
    TokenLoss,
    build_head,
)
from tokenizer.lattices import leech
from tokenizer.lattices.codes import build_code
from tokenizer.lattices.geometry import code_geometry
from tokenizer.lattices.machine_speed import measure_speed
from tokenizer.lattices.search_benchmark import compare, exactness
from tokenizer.tokens import TokenSpec

LARGEST_LOSS = 1e-6  # relative, of an exact search in float32


def run_search(options: argparse.Namespace) -> None:
    """The `search` subcommand."""
    torch.set_num_threads(options.threads)
    if options.exactness:
        run_exactness(options.exactness)
        return
    clock = CLOCKS[options.clock]
    rounds = f"medians of {options.repeats} interleaved rounds"
    print(f"{options.threads} threads, {options.clock} time, {rounds}")
    speed = measure_speed(clock)
    print(speed)
    for size in options.sizes:
        z = torch.randn(size, leech.DIM, generator=torch.Generator().manual_seed(size))
        timings = compare(
            z, speed, repeats=options.repeats, brute_vectors=options.brute_vectors, clock=clock
        )
        print(*timings, sep="\n", flush=True)


def run_exactness(count: int) -> None:
    """Prints a line per chunk, then the sums.

    Raises:
        SystemExit: a returned code is worse than the best one by more than rounding.
    """
    start, done = time.perf_counter(), 0
    sums: dict[tuple[str, str], tuple[int, int, float]] = {}
    for part in exactness(count):
        key = (part.distribution, part.method)
        vectors, unlike, loss = sums.get(key, (0, 0, 0.0))
        sums[key] = (vectors + part.count, unlike + part.unlike, max(loss, part.loss))
        if part.method == "eager":
            done += part.count
            seconds = time.perf_counter() - start
            print(f"{done:9d} vectors, {done / seconds:6.0f} /s: {part.distribution}", flush=True)
    for (distribution, method), (vectors, unlike, loss) in sums.items():
        print(
            f"{distribution:20s} {method:8s} {vectors:9d} vectors, {unlike:6d} other indices, "
            f"loss <= {loss:.1e}"
        )
    worst = max(loss for _, _, loss in sums.values())
    if worst > LARGEST_LOSS:
        raise SystemExit(f"not exact: a product is {worst:.1e} below the largest")


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
        times = [seconds_of(partial(step, hidden), clock) for _ in range(options.repeats)]
        seconds[name] = statistics.median(times) / options.tokens
        peak = (peak_bytes_of(partial(step, hidden)) or 0) / 2**20
        ratio = seconds["full logits"] / seconds[name]
        milliseconds = 1e6 * seconds[name]
        print(f"{name:24s} {milliseconds:10.1f} ms / 1,000 tokens {ratio:8.1f} x {peak:8.0f} MiB")


def _add_search(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    search = commands.add_parser("search", help="nearest code of the Leech lattice")
    search.add_argument("--sizes", type=int, nargs="+", default=[521, 680, 16_384, 262_144])
    search.add_argument("--threads", type=int, default=torch.get_num_threads())
    search.add_argument("--repeats", type=int, default=5)
    search.add_argument(
        "--brute-vectors", type=int, default=16_384, help="brute force is scaled up beyond these"
    )
    search.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    search.add_argument("--exactness", type=int, metavar="N", help="check N vectors instead")
    search.set_defaults(run=run_search)


def _add_head(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    head = commands.add_parser("head", help="the lattice softmax against full logits")
    head.add_argument("--width", type=int, default=768)
    head.add_argument("--tokens", type=int, default=250)
    head.add_argument("--repeats", type=int, default=3)
    head.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    head.set_defaults(run=run_head)


def _add_codes(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    codes = commands.add_parser("codes", help="geometry of spherical codes")
    codes.add_argument("names", nargs="*", default=["leech", "slq_released"], metavar="NAME")
    codes.add_argument("--size", type=int, default=16_384, help="of codes of free size")
    codes.add_argument("--samples", type=int, default=8_192, help="uniform points to quantize")
    codes.add_argument("--rows", type=int, default=256, help="codes compared with all others")
    codes.set_defaults(run=run_codes)


# A subcommand is a function that adds its options and sets what runs them.
SUBCOMMANDS = (_add_search, _add_head, _add_codes)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one subcommand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in SUBCOMMANDS:
        add(commands)
    options = parser.parse_args(argv)
    options.run(options)


if __name__ == "__main__":
    main()

"""Measures: `python scripts/benchmark.py search [--sizes 680]`, `head`, `train-step`,
`step-costs`, `sample` or `codes`.

`search` times the exact nearest-code search of the Leech lattice, eager and compiled, against brute
force over all 196,560 codes: in tiles of several sizes (the best one counts), over half the codes
(one of each pair ±c), by one dense product as in the official code, and by FAISS where it is
installed. Every row says how many times as fast as the tiles it is, and what part of the speed it
reaches that its own arithmetic allows on this machine: the compiled search 10,100 additions and
maxima a vector in registers, the eager search what it does element by element in the cache, brute
force a matrix product. `--exactness N` checks N vectors of seven distributions against float64
brute force instead, and fails if any product falls short of the largest by 1e-6 of it.
`head` times the losses of heads against the full logits of a 196,560-way layer, in interleaved
rounds, and measures what they need beyond weights and gradients (`scripts.benchmarks.head`).
`train-step` splits a training step of the generator into what multiplies matrices and what does
not: `train-step --shapes infinity-cc-12 --precisions fp32 bf16 --images 4`.
`step-costs` compares whole training steps of a run with several heads and with several optimizers,
all in the same rounds, on random tokens (`scripts.benchmarks.step_costs`). Values are those of
training's `model.head=` and `optimizer=`; an optimizer without clip_norm clips as the config's.
The tokenizer is a trained one or a config of stage 1:
`step-costs configs/generator/cifar10_leech.yaml
tokenizer=configs/tokenizer/cifar10_leech.yaml loop.batch_size=16 --repeats 9 --clock cpu`.
`sample` times `generate` at published shapes against a straightforward sampler with the same
weights, and beside both what the matrix products alone take (`scripts.benchmarks.sample`).
`codes` prints the geometry of spherical codes: minimum distance, neighbours, error on the sphere.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from lambda24.common.command_line import run_program
from lambda24.common.config import load_config
from lambda24.common.training.launch import resolve_precision
from lambda24.generator.settings import GeneratorTrainingConfig
from lambda24.scripts.benchmarks.head import time_heads
from lambda24.scripts.benchmarks.machine_speed import measure_speed
from lambda24.scripts.benchmarks.sample import SHAPES, build_pipeline, report
from lambda24.scripts.benchmarks.search import compare, exactness
from lambda24.scripts.benchmarks.step import Step, benchmark_shape, time_step
from lambda24.scripts.benchmarks.step_costs import time_steps
from lambda24.scripts.benchmarks.timing import CLOCKS
from lambda24.tokenizer import ImageTokenizer
from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.lattices.codes import build_code
from lambda24.tokenizer.lattices.geometry import code_geometry
from lambda24.tokenizer.settings import TokenizerTrainingConfig

LARGEST_LOSS = 1e-6  # relative, of an exact search in float32
HEADS = (
    "{kind: lattice}",
    "{kind: lattice, num_mixtures: 2}",
    "{kind: lattice, num_mixtures: 4}",
    "{kind: lattice, num_mixtures: 8}",
    "{kind: coordinates}",
    "{kind: categorical}",
)
OPTIMIZERS = (
    "{kind: adamw}",
    "{kind: muon}",
    "{kind: dion}",
    "{kind: dion, rank_fraction: 0.5}",
    "{kind: dion, rank_fraction: 0.25}",
)


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
    """Forward and backward of a loss with Z-loss: heads against a 196,560-way layer."""
    for width in options.widths:
        timings = time_heads(
            width, tokens=options.tokens, repeats=options.repeats, clock=CLOCKS[options.clock]
        )
        for timing in timings:
            print(timing, flush=True)


def run_train_step(options: argparse.Namespace) -> None:
    """The `train-step` subcommand."""
    for shape in options.shapes:
        for precision in options.precisions:
            torch.manual_seed(0)
            generator = benchmark_shape(shape, options.head, options.depth)
            length = generator.spec.length
            print(f"{shape}, {precision}, {options.images} images of {length} tokens", flush=True)
            step = Step(generator, options.images, bf16=precision == "bf16")
            print(time_step(step, repeats=options.repeats, clock=CLOCKS[options.clock]), flush=True)


def run_step_costs(options: argparse.Namespace) -> None:
    """Prints a table of heads and one of optimizers, then what encoding takes."""
    config = load_config(GeneratorTrainingConfig, options.config, options.overrides)
    parts = {"model.head": options.heads, "optimizer": options.optimizers}
    configs: dict[str, GeneratorTrainingConfig] = {}
    for override in (f"{part}={value}" for part, values in parts.items() for value in values):
        found = load_config(GeneratorTrainingConfig, options.config, [*options.overrides, override])
        clip_norm = found.optimizer.clip_norm or config.optimizer.clip_norm
        configs[override] = replace(found, optimizer=replace(found.optimizer, clip_norm=clip_norm))
    image_tokenizer = _open_tokenizer(config.tokenizer)
    costs = time_steps(
        configs, image_tokenizer, repeats=options.repeats, clock=CLOCKS[options.clock]
    )
    print(
        f"{resolve_precision(config.loop.precision)}, {costs.images} images of "
        f"{image_tokenizer.spec.length} random tokens, {torch.get_num_threads()} threads, "
        f"{options.clock} time, medians of {options.repeats} interleaved rounds"
    )
    for part, values in parts.items():
        names = {f"{part}={value}": f"`{value}`" for value in values}
        if names:
            print(f"\n{costs.table(f'`{part}`', names)}")
    milliseconds = 1e3 * statistics.median(costs.encoding)
    print(f"\nNot in these steps: encoding their images, {milliseconds:.1f} ms a step.")


def _open_tokenizer(source: str) -> ImageTokenizer:
    """A trained tokenizer, or one of random weights by a YAML file of stage 1."""
    if source.endswith(".yaml"):
        return ImageTokenizer(load_config(TokenizerTrainingConfig, source).model)
    return ImageTokenizer.from_pretrained(source)


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
    head = commands.add_parser("head", help="losses of heads against full logits")
    head.add_argument("--widths", type=int, nargs="+", default=[768])
    head.add_argument("--tokens", type=int, default=1000)
    head.add_argument("--repeats", type=int, default=3)
    head.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    head.set_defaults(run=run_head)


def _add_train_step(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    step = commands.add_parser("train-step", help="a training step of the generator, in parts")
    step.add_argument("--shapes", nargs="+", default=["var-d8", "infinity-cc-12"])
    step.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    step.add_argument("--head", default="lattice", choices=["lattice", "categorical"])
    step.add_argument("--images", type=int, default=4)
    step.add_argument("--depth", type=int, help="fewer layers than the shape has")
    step.add_argument("--repeats", type=int, default=3)
    step.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    step.set_defaults(run=run_train_step)


def _add_step_costs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    costs = commands.add_parser("step-costs", help="training steps by head and by optimizer")
    costs.add_argument("config", help="YAML file of configs/generator")
    costs.add_argument("overrides", nargs="*", metavar="key=value")
    costs.add_argument("--heads", nargs="*", default=HEADS, metavar="YAML")
    costs.add_argument("--optimizers", nargs="*", default=OPTIMIZERS, metavar="YAML")
    costs.add_argument("--repeats", type=int, default=5)
    costs.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    costs.set_defaults(run=run_step_costs)


def run_sample(options: argparse.Namespace) -> None:
    """Prints a table per shape and batch size."""
    torch.set_num_threads(options.threads)
    rounds = f"medians of {options.repeats} interleaved rounds"
    print(f"{options.threads} threads, {options.clock} time, {rounds}; random weights")
    for name in options.shapes:
        pipeline = build_pipeline(name, options.depth)
        for batch in options.batches:
            print(f"\n{name}, depth {pipeline.generator.config.depth}, ", end="")
            clock, compiled = CLOCKS[options.clock], options.compile
            for line in report(pipeline, batch, options.repeats, clock, compiled=compiled):
                print(line, flush=True)


def _add_sample(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sample = commands.add_parser("sample", help="generate against a straightforward sampler")
    sample.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=list(SHAPES))
    sample.add_argument("--batches", type=int, nargs="+", default=[1])
    sample.add_argument("--depth", type=int, help="fewer layers than the shapes have")
    sample.add_argument("--threads", type=int, default=torch.get_num_threads())
    sample.add_argument("--repeats", type=int, default=3)
    sample.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    sample.add_argument("--compile", action="store_true", help="with torch.compile, too")
    sample.set_defaults(run=run_sample)


def _add_codes(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    codes = commands.add_parser("codes", help="geometry of spherical codes")
    codes.add_argument("names", nargs="*", default=["leech", "slq_released"], metavar="NAME")
    codes.add_argument("--size", type=int, default=16_384, help="of codes of free size")
    codes.add_argument("--samples", type=int, default=8_192, help="uniform points to quantize")
    codes.add_argument("--rows", type=int, default=256, help="codes compared with all others")
    codes.set_defaults(run=run_codes)


# A subcommand is a function that adds its options and sets what runs them.
SUBCOMMANDS = (_add_search, _add_head, _add_train_step, _add_step_costs, _add_sample, _add_codes)


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
    run_program(main)

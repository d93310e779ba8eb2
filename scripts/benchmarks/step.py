"""Where the time of a training step of the generator goes, and what part of it multiplies matrices.

A step runs in phases that are timed each for itself: trunk forward, head forward and backward,
trunk backward, optimizer (clipping, AdamW, running average). The profiler then splits the trunk's
two phases by what computed: linear layers, attention, norms and modulation, ... Attention kernels
that fuse the softmax with the products count as products for the time which the same products take
alone in the same run, and as softmax for the rest.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from lambda24.common.optim.adamw import OptimizerConfig, build_optimizer
from lambda24.common.optim.ema import EMA
from lambda24.common.optim.gradients import clip_gradients
from lambda24.generator.heads import CategoricalHeadConfig, LatticeHeadConfig
from lambda24.generator.model import NextScaleGenerator
from lambda24.generator.presets import LEECH_CODES, LEECH_DIM, preset
from lambda24.scripts.benchmarks.timing import Clock, seconds_of

PHASES = ("trunk forward", "head forward", "head backward", "trunk backward", "optimizer")
TRUNK = ("trunk forward", "trunk backward")
PRODUCTS = ("linear layers", "attention products")
FUSED = "attention, fused"
# First match of a name or of what it runs within; of backward nodes, the name holds that of the
# forward function.
KINDS = {
    "_ImageModulate": "norms, modulation, gates",
    "_TiledAddGated": "norms, modulation, gates",
    "native_layer_norm": "norms, modulation, gates",
    "_TiledCosineHeads": "unit length and rotation of q, k",
    "scaled_dot_product": FUSED,
    "softmax": "attention softmax",
    "aten::bmm": "attention products",
    "aten::baddbmm": "attention products",
    "aten::mm": "linear layers",
    "aten::addmm": "linear layers",
    "aten::_addmm_activation": "linear layers",
    "linear_pointwise": "linear layers",
    "gelu": "activation",
    "ToCopyBackward": "casts",
    "aten::to": "casts",
}
REST = "rest"


def benchmark_shape(name: str, head: str, depth: int | None = None) -> NextScaleGenerator:
    """A model to time: "var-d8" (8 layers of width 512) or a name of `generator.presets`.

    Args:
        head: "lattice" (over the Leech codes) or "categorical" (over the shape's own codes).
        depth: fewer layers than the shape has.
    """
    if name == "var-d8":
        row = preset("var-d16")
        row = replace(row, config=replace(row.config, depth=8, width=512, num_heads=8))
    else:
        row = preset(name)
    config, spec = row.config, row.spec
    if head == "lattice":
        spec = replace(spec, codebook_sizes=(LEECH_CODES,), code_dim=LEECH_DIM)
    config = replace(
        config,
        depth=depth or config.depth,
        head=LatticeHeadConfig() if head == "lattice" else CategoricalHeadConfig(),
    )
    return NextScaleGenerator(config, spec)


@dataclass(frozen=True)
class StepTiming:
    """Median seconds of the phases of a step, and how the trunk's are spent.

    Args:
        phases: seconds by name of `PHASES`.
        trunk: seconds of the two trunk phases by kind of work; they sum to those phases.
    """

    phases: dict[str, float]
    trunk: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.phases.values())

    def __str__(self) -> str:
        """Two tables: phases, and kinds of work in the trunk."""
        share = f"{self.products_share:.1%} of it in the trunk's matrix products"
        lines = [f"step {1e3 * self.total:9.1f} ms, {share}"]
        for title, parts in (("phases", self.phases), ("trunk, forward and backward", self.trunk)):
            lines.append(f"  {title}")
            lines += [
                f"    {name:34s} {1e3 * part:9.1f} ms {part / self.total:7.1%}"
                for name, part in parts.items()
            ]
        return "\n".join(lines)

    @property
    def products_share(self) -> float:
        """Part of the whole step in which the trunk multiplies matrices."""
        return sum(self.trunk.get(name, 0.0) for name in PRODUCTS) / self.total


class Step:
    """A training step on random tokens, cut into its phases.

    Args:
        generator: trained in place.
        images: of a batch.
        bf16: trunk under autocast.
    """

    def __init__(self, generator: NextScaleGenerator, images: int, *, bf16: bool) -> None:
        self.generator, self.bf16 = generator.train(), bf16
        spec = generator.spec
        draws = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(images, spec.length, spec.code_dim, generator=draws)
        self.labels = torch.arange(images) % generator.num_classes
        shape = (images, spec.length, spec.num_codebooks)
        self.tokens = torch.randint(min(spec.codebook_sizes), shape, generator=draws)
        self.config = OptimizerConfig(lr=1e-5, clip_norm=1.0)
        self.optimizer = build_optimizer(generator, self.config)
        self.average = EMA(generator, 0.999)
        self.step = 0

    def trunk_forward(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            self.hidden: Tensor = self.generator(self.inputs, self.labels)

    def head_forward(self) -> None:
        self.leaf = self.hidden.detach().requires_grad_()
        found = self.generator.head.loss(self.leaf, self.tokens)
        self.loss = found.nll.mean() + 1e-4 * found.z_loss.mean()

    def head_backward(self) -> None:
        self.loss.backward()

    def trunk_backward(self) -> None:
        self.hidden.backward(self.leaf.grad)

    def optimize(self) -> None:
        clip_gradients(self.generator, self.config.clip_norm)
        self.optimizer.step()
        self.average.update(self.step)
        self.step += 1

    def phases(self) -> dict[str, Callable[[], None]]:
        """What to call, in this order, by name."""
        runs = (
            self.trunk_forward,
            self.head_forward,
            self.head_backward,
            self.trunk_backward,
            self.optimize,
        )
        return dict(zip(PHASES, runs, strict=True))


def time_step(step: Step, *, repeats: int, clock: Clock) -> StepTiming:
    """Times and profiles a step after one that warms up."""
    phases = step.phases()
    for run in phases.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in phases}
    for _ in range(repeats):
        for name, run in phases.items():
            seconds[name].append(seconds_of(run, clock))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    trunk: dict[str, float] = {}
    shares = [_profiled(phases[name]) if name in TRUNK else phases[name]() for name in PHASES]
    for name, share in zip(PHASES, shares, strict=True):
        if share is not None:
            for kind, part in share.items():
                trunk[kind] = trunk.get(kind, 0.0) + part * medians[name]
    if FUSED in trunk:
        _split_fused(trunk, products_alone(step.generator, len(step.labels), step.bf16, clock))
    return StepTiming(medians, dict(sorted(trunk.items(), key=lambda item: -item[1])))


def products_alone(generator: NextScaleGenerator, images: int, bf16: bool, clock: Clock) -> float:
    """Seconds of all layers' attention products over all pairs: 2 forward, 5 backward.

    The scores are computed again for the gradient, as fused kernels do.
    """
    config, length = generator.config, generator.spec.length
    rows, dim = images * config.num_heads, config.width // config.num_heads
    dtype = torch.bfloat16 if bf16 else torch.float32
    tall = torch.randn(rows, length, dim).to(dtype)
    square = torch.randn(rows, length, length).to(dtype)
    scores = partial(torch.bmm, tall, tall.transpose(1, 2), out=torch.empty_like(square))
    mixed = partial(torch.bmm, square, tall, out=torch.empty_like(tall))
    turned = partial(torch.bmm, square.transpose(1, 2), tall, out=torch.empty_like(tall))
    total = 0.0
    for run, times in ((scores, 3), (mixed, 2), (turned, 2)):
        run()
        total += times * seconds_of(run, clock, at_least=0.05)
    return config.depth * total


def _split_fused(trunk: dict[str, float], alone: float) -> None:
    """Shares the time of fused attention between products and softmax."""
    fused = trunk.pop(FUSED)
    products = min(fused, alone)
    for name, part in (("attention products", products), ("attention softmax", fused - products)):
        trunk[name] = trunk.get(name, 0.0) + part


def _profiled(run: Callable[[], None]) -> dict[str, float]:
    """Share of the time of a call by kind of work."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    times: dict[str, float] = {}
    for event in profiler.events() or []:
        kind = _kind(event)
        times[kind] = times.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(times.values())
    return {kind: time / total for kind, time in times.items()}


def _kind(event: FunctionEvent | None) -> str:
    while event is not None:
        for part, kind in KINDS.items():
            if part in event.name:
                return kind
        event = event.cpu_parent
    return REST

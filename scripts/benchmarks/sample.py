"""Speed and memory of `generate` against a straightforward sampler with the same weights.

Published shapes with random weights. Images are decoded by a decoder of next to no size, because a
real one would cost both samplers the same. Beside the times stands what the matrix products alone
take: every product of a sampling run, of the same shapes with the same weights, in the same rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from lambda24.generator.heads import CategoricalHeadConfig, HeadConfig, LatticeHeadConfig
from lambda24.generator.model import NextScaleGenerator
from lambda24.generator.presets import preset
from lambda24.sampling.compiled import compiled
from lambda24.sampling.generate import generate
from lambda24.sampling.guidance import num_paired_scales
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.ramps import LinearRamp, VarRamp
from lambda24.sampling.settings import SamplingConfig
from lambda24.scripts.benchmarks.straightforward import ReferenceSampler
from lambda24.scripts.benchmarks.timing import (
    Clock,
    Run,
    interleaved,
    median_ratio,
    peak_bytes_of,
    seconds_of,
)
from lambda24.tokenizer.autoencoders.cnn import CNNConfig
from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.model import ImageTokenizer, TokenizerConfig
from lambda24.tokenizer.pyramid.multiscale import PyramidConfig
from lambda24.tokenizer.quantizers import LeechConfig, VQConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
REFERENCE = "reference, fp32"
PRODUCTS = "products alone, "
MOST_LOGITS = 1 << 28  # of the reference, 1 GiB: above, it does not run
# Random heads are scaled up until logits have a standard deviation of about 2.3, which leaves
# distributions about as wide as trained ones: VAR's loss is 5 nats.
HEAD_SCALE = 200.0
VAR_SAMPLING = SamplingConfig(guidance_scale=VarRamp(cfg=1.5), top_k=900, top_p=0.96)
CC_SAMPLING = SamplingConfig(
    guidance_scale=LinearRamp(start=1.0, end=3.0),
    top_k=LinearRamp(start=10_000.0, end=4_000.0),
    top_p=0.95,
)
SHAPES: dict[str, tuple[str, HeadConfig, SamplingConfig]] = {
    "var-d16": ("var-d16", CategoricalHeadConfig(), VAR_SAMPLING),
    "infinity-cc-12": ("infinity-cc-12", CategoricalHeadConfig(), CC_SAMPLING),
    "infinity-cc-12-lattice": ("infinity-cc-12", LatticeHeadConfig(), CC_SAMPLING),
}


@dataclass(frozen=True)
class Timing:
    """One sampler at one batch size; times are medians over interleaved rounds."""

    sampler: str
    batch: int
    seconds: float  # an image
    times_reference: float | None  # how many times as fast; None where the reference did not run
    of_products: float | None  # part of the time that its matrix products alone take
    peak_bytes: int | None
    equal_tokens: float | None  # part of the tokens that are the reference's

    def __str__(self) -> str:
        memory = "-" if self.peak_bytes is None else f"{self.peak_bytes / 2**20:.0f} MiB"
        ratio = "-" if self.times_reference is None else f"{self.times_reference:.2f} x"
        products = "-" if self.of_products is None else f"{100 * self.of_products:.0f} %"
        equal = "-" if self.equal_tokens is None else f"{100 * self.equal_tokens:.2f} %"
        return (
            f"{self.sampler:24s} {self.batch:5d} {self.seconds:9.3f} s {1 / self.seconds:9.3f} /s "
            f"{ratio:>9s} {products:>9s} {memory:>10s} {equal:>9s}"
        )


HEADER = (
    f"{'sampler':24s} {'batch':>5s} {'an image':>11s} {'images':>12s} {'faster':>9s} "
    f"{'products':>9s} {'memory':>10s} {'equal':>9s}"
)


def build_pipeline(name: str, depth: int | None = None) -> Pipeline:
    """A pipeline of a shape of `SHAPES` with random weights.

    Args:
        depth: fewer layers than the shape has.
    """
    source, head, sampling = SHAPES[name]
    shape = preset(source)
    spec = shape.spec
    torch.manual_seed(0)
    is_leech = spec.codebook_sizes == (leech.NUM_CODES,)
    codes = VQConfig(dim=spec.code_dim, codebook_size=spec.codebook_sizes[0])
    image_tokenizer = ImageTokenizer(
        TokenizerConfig(
            image_size=4 * spec.latent_size,
            pyramid=PyramidConfig(scales=spec.scales),
            autoencoder=CNNConfig(channels=(8,), patch_size=4, groups=4),
            quantizer=LeechConfig() if is_leech else codes,
        )
    )
    config = replace(shape.config, head=head, depth=depth or shape.config.depth, drop_path=0.0)
    summands = leech.DIM if isinstance(head, LatticeHeadConfig) else 1  # of a logit
    generator = NextScaleGenerator(config, spec)
    with torch.no_grad():
        for module_name, module in generator.named_modules():
            if isinstance(module, nn.Linear):
                if module_name.startswith("head."):
                    module.weight.mul_(HEAD_SCALE * summands**-0.5)
                elif "adaln" in module_name:  # gates that start at zero would hide the layers
                    module.bias.normal_(std=0.1)
    return Pipeline(image_tokenizer, generator, sampling)


def compare(
    pipeline: Pipeline, batch: int, *, repeats: int, clock: Clock, backend: str | None = "inductor"
) -> list[Timing]:
    """Times the samplers on `batch` images; the first run of each measures memory, not time.

    Args:
        backend: of `torch.compile`; None leaves the compiled samplers out.
    """
    samplers = _samplers(pipeline, batch, backend)
    tokens: dict[str, Tensor] = {}
    peaks = {name: _first_run(name, sampler, tokens) for name, sampler in samplers.items()}
    runs: dict[str, Run] = dict(samplers)
    for name, dtype in DTYPES.items():
        products = matrix_products(pipeline.generator, batch, pipeline.sampling, dtype)
        products()
        runs[PRODUCTS + name] = products
    seconds = interleaved(runs, repeats, clock)
    reference = seconds.get(REFERENCE)
    timings = []
    for name in samplers:
        ratio = median_ratio(reference, seconds[name]) if reference else None
        products_alone = seconds[PRODUCTS + ("bf16" if "bf16" in name else "fp32")]
        share = None if name == REFERENCE else median_ratio(products_alone, seconds[name])
        equal = None
        if REFERENCE in tokens:
            equal = float((tokens[name] == tokens[REFERENCE]).float().mean())
        median = statistics.median(seconds[name]) / batch
        timings.append(Timing(name, batch, median, ratio, share, peaks[name], equal))
    return timings


def _samplers(
    pipeline: Pipeline, batch: int, backend: str | None
) -> dict[str, Callable[[], Tensor]]:
    """Tokens (B, L, 1) of each sampler that is compared, the reference first."""
    generator, image_tokenizer = pipeline.generator, pipeline.image_tokenizer
    labels, seeds = torch.arange(batch) % generator.num_classes, range(batch)
    config, spec = pipeline.sampling, generator.spec

    def ours(model: NextScaleGenerator, dtype: torch.dtype) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return generate(model, image_tokenizer, labels, seeds, config).tokens.indices

    samplers: dict[str, Callable[[], Tensor]] = {}
    if 2 * batch * max(spec.scale_lengths) * max(spec.codebook_sizes) <= MOST_LOGITS:
        reference = ReferenceSampler(generator, image_tokenizer, config)
        samplers[REFERENCE] = lambda: reference(labels, seeds).tokens.indices
    models = {"": generator}
    if backend is not None:
        models[", compiled"] = compiled(generator, backend)
    for suffix, model in models.items():
        for name, dtype in DTYPES.items():
            samplers[f"generate, {name}{suffix}"] = partial(ours, model, dtype)
    return samplers


@dataclass(frozen=True)
class Products:
    """Pairs of matrices (..., M, K) and (..., K, N) to multiply."""

    pairs: list[tuple[Tensor, Tensor]]

    def __call__(self) -> None:
        for left, right in self.pairs:
            torch.matmul(left, right)

    @property
    def operations(self) -> float:
        """Floating-point operations."""
        return sum(2.0 * left.numel() * right.shape[-1] for left, right in self.pairs)


@torch.inference_mode()
def matrix_products(
    generator: NextScaleGenerator, batch: int, config: SamplingConfig, dtype: torch.dtype
) -> Products:
    """The products of a run of `generate`, those of head and AdaLN in fp32 as there.

    Guidance doubles the images up to the last guided scale, but not in a linear head.
    """
    spec, shape = generator.spec, generator.config
    paired = num_paired_scales([setting.guidance_scale for setting in config.resolve(spec)])
    head_dim = shape.width // shape.num_heads
    operands: dict[tuple[object, ...], Tensor] = {}

    def operand(*sizes: int, dtype: torch.dtype = dtype) -> Tensor:
        return operands.setdefault((sizes, dtype), torch.randn(sizes, dtype=dtype))

    layers = [[w.to(dtype) for w in _weights(block, "adaln")] for block in generator.blocks]
    last = _weights(generator.head)
    pairs = []
    for k, length in enumerate(spec.scale_lengths):
        images, stop = (2 if k < paired else 1) * batch, spec.offsets[k + 1]
        heads = images * shape.num_heads
        for weights in layers:
            pairs += [(operand(images * length, w.shape[1]), w.T) for w in weights]
            pairs.append((operand(heads, length, head_dim), operand(heads, head_dim, stop)))
            pairs.append((operand(heads, length, stop), operand(heads, stop, head_dim)))
        rows = batch * length if generator.head.is_linear else images * length
        pairs += [(operand(rows, w.shape[1], dtype=torch.float32), w.T) for w in last]
    adaln = [m for name, m in generator.named_modules() if name.endswith("adaln")]
    rows = 2 * batch if paired else batch
    for weight in (w for module in adaln for w in _weights(module)):
        pairs.append((operand(rows, weight.shape[1], dtype=torch.float32), weight.T))
    return Products(pairs)


def _weights(module: nn.Module, without: str | None = None) -> list[Tensor]:
    """Matrices of a module's linear layers."""
    return [
        part.weight.detach()
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and name != without
    ]


@lru_cache
def peak_rate(dtype: torch.dtype, clock: Clock) -> float:
    """Floating-point operations a second of a large matrix product at its best."""
    size = 2048
    matrix = torch.randn(size, size, dtype=dtype)
    run = partial(torch.mm, matrix, matrix)
    run()
    return 2.0 * size**3 / min(seconds_of(run, clock) for _ in range(5))


def _first_run(name: str, sampler: Callable[[], Tensor], tokens: dict[str, Tensor]) -> int | None:
    """Keeps the tokens and returns the peak of memory beyond the models'."""

    def run() -> None:
        tokens[name] = sampler()

    if "compiled" in name:  # not the compiler's own memory
        run()
    return peak_bytes_of(run)


def report(
    pipeline: Pipeline, batch: int, repeats: int, clock: Clock, compiled: bool
) -> Iterator[str]:
    """Lines of text: what the products need at least, then a line a sampler."""
    parts = []
    for name, dtype in DTYPES.items():
        operations = matrix_products(pipeline.generator, batch, pipeline.sampling, dtype).operations
        rate = peak_rate(dtype, clock)
        parts.append(f"{operations / batch / rate:.2f} s at {rate / 1e9:.0f} GFLOP/s in {name}")
    yield f"batch {batch}: {operations / batch / 1e9:.0f} GFLOP an image, {', '.join(parts)}"
    yield HEADER
    backend = "inductor" if compiled else None
    yield from map(str, compare(pipeline, batch, repeats=repeats, clock=clock, backend=backend))

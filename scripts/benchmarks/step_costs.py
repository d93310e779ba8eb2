"""What a training step costs with each of several heads or optimizers, in one process.

A step is `GeneratorTask.train_step` of a run that reads its tokens: the frozen tokenizer's inputs
for them, trunk, head, loss with Z-loss, backward, clipping, optimizer, running average. Encoding,
which a run on images adds to every step, is timed for itself; reading images is not. Tokens and
weights are random. Steps on a CPU only.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from lambda24.common.data.batches import Batch
from lambda24.common.data.dataset import ImageDataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.data.sources import Table
from lambda24.common.images import from_uint8
from lambda24.common.training.launch import build_accelerator
from lambda24.generator.settings import GeneratorTrainingConfig
from lambda24.generator.task import GeneratorTask
from lambda24.scripts.benchmarks.timing import Clock, interleaved, median_ratio, peak_bytes_of
from lambda24.tokenizer import ImageTokenizer, TokenSpec

ENCODING = "encoding"


@dataclass(frozen=True)
class StepCosts:
    """Steps of all variants in the same rounds.

    Args:
        seconds: of each round, by variant.
        extra_bytes: peak of a step beyond weights, averages and optimizer state; None where the
            system does not tell.
        encoding: seconds of each round for a step's images.
        images: of a step.
    """

    seconds: dict[str, list[float]]
    extra_bytes: dict[str, int | None]
    encoding: list[float]
    images: int

    def table(self, title: str, variants: Mapping[str, str]) -> str:
        """Markdown, a row a variant; costs are relative to the first one, within rounds.

        Args:
            variants: what to call each.
        """
        first = self.seconds[next(iter(variants))]
        lines = [
            f"| {title} | ms a step | cost of a step | images/s | memory of a step, MiB |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, shown in variants.items():
            seconds, extra = self.seconds[name], self.extra_bytes[name]
            median = statistics.median(seconds)
            memory = "not measured" if extra is None else f"{extra / 2**20:.0f}"
            lines.append(
                f"| {shown} | {1e3 * median:.1f} | {median_ratio(seconds, first):.3f} "
                f"| {self.images / median:.1f} | {memory} |"
            )
        return "\n".join(lines)


class TrainStep:
    """The next step of a run on the same batches, at each call."""

    def __init__(
        self, task: GeneratorTask, batches: Sequence[Batch], accelerator: Accelerator
    ) -> None:
        task.prepare(accelerator)
        self.task, self.batches, self.done = task, batches, 0

    def __call__(self) -> None:
        self.task.train_step(self.batches, self.done)
        self.done += 1

    def encode(self) -> None:
        """What a run on images does before it has tokens."""
        for batch in self.batches:
            with self.task.accelerator.autocast():
                if self.task.self_correction is not None:
                    self.task.self_correction.encode(batch)
                else:
                    self.task.image_tokenizer.encode(batch.images)


def time_steps(
    configs: Mapping[str, GeneratorTrainingConfig],
    image_tokenizer: ImageTokenizer,
    *,
    repeats: int,
    clock: Clock,
) -> StepCosts:
    """Times runs that differ in model or optimizer alone, after a step of each that warms up.

    Raises:
        ValueError: nothing to time, a batch size that does not divide, a model that does not suit
            the tokenizer, another device.
    """
    if not configs or repeats < 1:
        raise ValueError(
            f"step costs need a variant and a repeat or more, got {len(configs)} variants and "
            f"repeats {repeats}"
        )
    steps = build_steps(configs, image_tokenizer)
    first = next(iter(steps.values()))
    runs: dict[str, Callable[[], None]] = {**steps, ENCODING: first.encode}
    for run in runs.values():
        run()
    seconds = interleaved(runs, repeats, clock)
    encoding = seconds.pop(ENCODING)
    extra_bytes = {name: peak_bytes_of(step) for name, step in steps.items()}
    return StepCosts(seconds, extra_bytes, encoding, sum(map(len, first.batches)))


def build_steps(
    configs: Mapping[str, GeneratorTrainingConfig], image_tokenizer: ImageTokenizer
) -> dict[str, TrainStep]:
    """A step of each run, on the data, batch size and precision of the first one."""
    config = next(iter(configs.values()))
    loop = config.loop
    if loop.batch_size % loop.accumulation:
        raise ValueError(
            f"loop.batch_size {loop.batch_size} must be divisible by loop.accumulation "
            f"{loop.accumulation}"
        )
    accelerator = build_accelerator(precision=loop.precision, trackers=(), run=config.run)
    if accelerator.device.type != "cpu":
        raise ValueError(
            f"steps are timed on the cpu, got {accelerator.device.type}: set ACCELERATE_USE_CPU=1"
        )
    data = random_images(config.data, config.model.num_classes, loop.batch_size)
    size = loop.batch_size // loop.accumulation
    chunks = torch.arange(loop.batch_size).split(size)
    batches = [random_batch(data, chunk, image_tokenizer.spec) for chunk in chunks]
    return {
        name: TrainStep(GeneratorTask(changed, image_tokenizer, data, data), batches, accelerator)
        for name, changed in configs.items()
    }


class NoiseTable(Table):
    """Images of uniform noise; their size does not matter."""

    def image(self, row: int) -> Image.Image:
        pixels = np.random.default_rng(row).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


def random_images(config: DataConfig, num_classes: int, count: int) -> ImageDataset:
    """Stands in for the data of a config."""
    names = tuple(str(label) for label in range(num_classes))
    table = NoiseTable(np.arange(count) % num_classes, names)
    return ImageDataset(table, np.arange(count), config, augment=False)


def random_batch(data: ImageDataset, indices: Tensor, spec: TokenSpec) -> Batch:
    """Images and their labels, with tokens drawn uniformly."""
    draws = torch.Generator().manual_seed(int(indices[0]))
    shape = (len(indices), spec.length)
    tokens = [torch.randint(size, shape, generator=draws) for size in spec.codebook_sizes]
    images = from_uint8(data.images_uint8(indices))
    return Batch(images, data.labels[indices], indices, torch.stack(tokens, dim=-1))

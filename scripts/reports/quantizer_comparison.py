"""Quantizers compared: the same small autoencoder around each, equal bits, equal budget."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lambda24.common.config import from_dict, to_dict
from lambda24.common.data.dataset import load_dataset
from lambda24.common.metrics.pairs import save_metrics
from lambda24.common.training.loop import fit
from lambda24.scripts.reports.quantizer_task import ComparisonConfig, ComparisonTask, Contender

RESULT_FILE = "result.json"


@dataclass(frozen=True)
class ComparisonResult:
    """One trained contender. Distances that were not asked for are None.

    `entropy_bits` and `perplexity` are of held-out tokens, a plug-in estimate that cannot exceed
    log2(num_tokens) per codebook; with several codebooks entropies add up and `usage` and
    `perplexity` are (geometric) means over codebooks. `seconds` is training only.
    `peak_memory_mib` is the device's peak of training, on a CPU the growth of the process's.
    """

    name: str
    group: str
    seed: int
    bits: float
    latent_channels: int
    psnr: float
    ssim: float
    entropy_bits: float
    usage: float
    perplexity: float
    num_tokens: float
    images_per_second: float
    peak_memory_mib: float
    seconds: float
    perceptual: float | None = None
    rfid: float | None = None


def finished(config: ComparisonConfig, contender: Contender, seed: int) -> ComparisonResult | None:
    """What an earlier command measured of a contender with a seed, or None."""
    done = _folder(config, contender, seed) / RESULT_FILE
    if not done.is_file():
        return None
    return ComparisonResult(**json.loads(done.read_text(encoding="utf-8")))


def _folder(config: ComparisonConfig, contender: Contender, seed: int) -> Path:
    return Path(config.run) / contender.name / f"seed_{seed}"


def run_contender(config: ComparisonConfig, contender: Contender, seed: int) -> ComparisonResult:
    """Trains and measures one contender with one seed; a finished one is read from its file."""
    if (known_result := finished(config, contender, seed)) is not None:
        return known_result
    run = _folder(config, contender, seed)
    task = ComparisonTask(
        config,
        contender,
        seed,
        load_dataset(config.data, train=True),
        load_dataset(config.data, train=False),
    )
    loop = config.loop
    protocol = {**to_dict(config), "contenders": [to_dict(contender)], "seeds": [seed]}
    scalars = fit(
        task,
        task.train_data,
        loop=loop,
        run=run,
        config=from_dict(ComparisonConfig, protocol),
        seed=seed,
        num_workers=config.data.num_workers,
    )
    quantizer = task.autoencoder.quantizer
    known = {field.name for field in fields(ComparisonResult)}
    result = ComparisonResult(
        name=contender.name,
        group=contender.group,
        seed=seed,
        bits=quantizer.bits,
        latent_channels=quantizer.dim,
        images_per_second=loop.steps * loop.batch_size / scalars["seconds"],
        **{name: value for name, value in scalars.items() if name in known},
    )
    save_metrics(asdict(result), run / RESULT_FILE)
    return result

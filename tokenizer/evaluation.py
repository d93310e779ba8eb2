"""What a tokenizer's reconstructions are worth: distances to the images, code usage, rates.

Images and reconstructions are compared as uint8, rounded half up; PSNR, SSIM, MS-SSIM and LPIPS are
means over images; rFID compares the reconstructions with the very images that were encoded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from PIL import Image
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from lambda24.common.config import config_class, to_dict
from lambda24.common.data.settings import DataConfig
from lambda24.common.images import from_uint8, make_grid, to_uint8
from lambda24.common.metrics.pairs import MS_SSIM_SIDE, library_versions, psnr, save_metrics
from lambda24.common.metrics.reference import (
    ImageSource,
    SubsetImages,
    TensorImages,
    image_batches,
    spread,
)
from lambda24.common.processes import gather, share
from lambda24.tokenizer.meter import DEFINITIONS, ReconstructionMeter, TokenizerEvaluationConfig
from lambda24.tokenizer.model import ImageTokenizer
from lambda24.tokenizer.tokens import TokenPyramid
from lambda24.tokenizer.usage import code_usage

__all__ = [
    "ScaleReport",
    "TokenizerEvaluation",
    "TokenizerEvaluationConfig",
    "TokenizerEvaluationRun",
    "evaluate_tokenizer",
    "prefix_pictures",
    "scale_report",
]


@config_class
class TokenizerEvaluationRun:
    """One file of `scripts/evaluate_tokenizer.py`.

    Args:
        split: which part of the data is reconstructed.
        num_pictures: images whose prefixes (1 scale, 2 scales, ..., all) are drawn next to the
            result; 0 for none.
        device: None takes accelerate's.
        out: result file; None writes `reconstruction.json` next to the model.
    """

    data: DataConfig
    split: Literal["train", "eval"] = "eval"
    evaluation: TokenizerEvaluationConfig = TokenizerEvaluationConfig()
    num_pictures: Annotated[int, Field(ge=0)] = 8
    device: str | None = None
    out: str | None = None


@dataclass(frozen=True)
class ScaleReport:
    """One scale; codes and entropy are sums over a token's codebooks.

    `prefix_psnr` decodes this scale and all coarser ones. Entropy is the plug-in estimate from
    `num_tokens` tokens, which cannot exceed log2(num_tokens).
    """

    side: int
    num_tokens: int
    codes_used: int
    usage: float
    entropy_bits: float
    prefix_psnr: float


@dataclass(frozen=True)
class TokenizerEvaluation:
    """Results with their protocol; distances that were not asked for are None."""

    psnr: float
    ssim: float
    ms_ssim: float | None
    lpips: float | None
    perceptual: float | None
    rfid: float | None
    codebook_usage: float
    bits_per_image: float
    bits_per_pixel: float
    entropy_bits_per_image: float
    scales: tuple[ScaleReport, ...]
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Writes JSON, atomically."""
        save_metrics(self.to_dict(), path)

    def markdown(self, name: str) -> str:
        """A table of one row, and one with a row a scale."""
        cells = {
            "tokenizer": name,
            "PSNR": f"{self.psnr:.2f}",
            "SSIM": f"{self.ssim:.4f}",
            "MS-SSIM": _cell(self.ms_ssim, ".4f"),
            "LPIPS": _cell(self.lpips, ".4f"),
            "perceptual": _cell(self.perceptual, ".4f"),
            "rFID": _cell(self.rfid, ".2f"),
            "bits per pixel": f"{self.bits_per_pixel:.3f}",
            "bits": f"{self.bits_per_image:.0f}",
            "entropy bits": f"{self.entropy_bits_per_image:.0f}",
            "usage": f"{self.codebook_usage:.1%}",
            "images": str(self.protocol["num_images"]),
        }
        scales = [
            (
                f"{scale.side} x {scale.side}",
                f"{scale.num_tokens:,}",
                f"{scale.codes_used:,}",
                f"{scale.usage:.1%}",
                f"{scale.entropy_bits:.2f}",
                f"{scale.prefix_psnr:.2f}",
            )
            for scale in self.scales
        ]
        names = ("scale", "tokens", "codes used", "usage", "entropy bits", "PSNR up to here")
        return "\n\n".join((_table(tuple(cells), [tuple(cells.values())]), _table(names, scales)))


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (names, ["---"] * len(names), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def evaluate_tokenizer(
    image_tokenizer: ImageTokenizer,
    dataset: ImageSource,
    config: TokenizerEvaluationConfig,
    accelerator: Accelerator | None = None,
) -> TokenizerEvaluation:
    """Encodes and decodes images of a data set and measures what comes back.

    Args:
        accelerator: shares the images among its processes; all get the result.

    Raises:
        ValueError: fewer images than asked for, images below 11 pixels, missing extractor weights.
    """
    started = time.monotonic()
    count = len(dataset) if config.num_images is None else config.num_images
    if not 2 <= count <= len(dataset):
        raise ValueError(
            f"num_images must lie in [2, {len(dataset)}], the size of the data set, got {count}"
        )
    source = SubsetImages(dataset, spread(len(dataset), count))
    meter = ReconstructionMeter(config, image_tokenizer.device, accelerator)
    mine = SubsetImages(source, share(count, accelerator).tolist())
    tokens, prefix_psnr = [], []
    was_training = image_tokenizer.training
    image_tokenizer.eval()
    try:
        for batch in _reconstruct(image_tokenizer, mine, config.batch_size):
            meter.update(batch.images, batch.prefixes[-1])
            tokens.append(batch.tokens.indices)
            prefix_psnr.append(torch.stack([psnr(p, batch.images) for p in batch.prefixes], dim=1))
    finally:
        image_tokenizer.train(was_training)
    scores = meter.report(source)
    spec = image_tokenizer.spec
    pyramid = TokenPyramid(gather(torch.cat(tokens), count, accelerator), spec)
    means = gather(torch.cat(prefix_psnr), count, accelerator).mean(dim=0).tolist()
    scales = tuple(scale_report(pyramid, k, prefix_psnr=means[k]) for k in range(spec.num_scales))
    lengths = spec.scale_lengths
    return TokenizerEvaluation(
        **asdict(scores),
        codebook_usage=code_usage(pyramid.indices, spec.codebook_sizes).usage,
        bits_per_image=spec.bits_per_image,
        bits_per_pixel=spec.bits_per_image / image_tokenizer.config.image_size**2,
        entropy_bits_per_image=sum(
            scale.entropy_bits * length for scale, length in zip(scales, lengths, strict=True)
        ),
        scales=scales,
        protocol=_protocol(config, count, len(dataset), meter, image_tokenizer, started),
    )


def _protocol(
    config: TokenizerEvaluationConfig,
    count: int,
    num_available: int,
    meter: ReconstructionMeter,
    image_tokenizer: ImageTokenizer,
    started: float,
) -> dict[str, Any]:
    protocol = {
        "num_images": count,
        "num_available": num_available,
        "config": to_dict(config),
        "extractor": None if meter.extractor is None else meter.extractor.identity,
        "definitions": DEFINITIONS
        | {
            "bits": "tokens times log2 of the codebook sizes, no entropy coding",
            "entropy_bits": "plug-in estimate from the tokens of one scale, times their number",
            "usage": "share of the codes that occur among all tokens of these images",
            "prefix_psnr": "PSNR decoded from the scales so far",
        },
        "versions": library_versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    width, size = meter.feature_width, image_tokenizer.config.image_size
    if width is not None and count <= width:
        protocol["warning"] = (
            f"{count} images for {width} features: covariances lack full rank, the "
            "distance is biased upwards and only comparable at equal counts"
        )
    if config.ms_ssim and size < MS_SSIM_SIDE:
        protocol["ms_ssim_missing"] = (
            f"five scales need {MS_SSIM_SIDE} pixels, images have {size}; fewer scales or a "
            "smaller window would be another metric"
        )
    return protocol


@torch.no_grad()
def prefix_pictures(
    image_tokenizer: ImageTokenizer, dataset: ImageSource, count: int
) -> Image.Image:
    """A grid: `count` images, below them what 1 scale, 2 scales, ..., all scales decode to."""
    images = dataset.images_uint8(spread(len(dataset), min(count, len(dataset))))
    (batch,) = _reconstruct(image_tokenizer, TensorImages(images), len(images))
    rows = [images, *batch.prefixes]
    last = len(batch.prefixes)
    names = [f"{k} scale{'s' if k > 1 else ''}" for k in range(1, last)]
    return make_grid(torch.cat(rows), ["original", *names, f"all {last}"], columns=len(images))


@dataclass(frozen=True)
class _Batch:
    images: Tensor  # (B, 3, H, W) uint8
    prefixes: list[Tensor]  # per number of scales, (B, 3, H, W) uint8
    tokens: TokenPyramid


@torch.no_grad()
def _reconstruct(
    image_tokenizer: ImageTokenizer, source: ImageSource, batch_size: int
) -> Iterator[_Batch]:
    device = image_tokenizer.device
    with tqdm(total=len(source), unit="image", desc="reconstructing", leave=False) as bar:
        for images in image_batches(source, batch_size):
            tokens = image_tokenizer.encode(from_uint8(images).to(device))
            prefixes = [to_uint8(image).cpu() for image in image_tokenizer.decode_prefixes(tokens)]
            yield _Batch(images, prefixes, tokens.to("cpu"))
            bar.update(len(images))


def scale_report(tokens: TokenPyramid, scale: int, *, prefix_psnr: float) -> ScaleReport:
    """Usage of the codebooks at one scale."""
    indices = tokens.scale(scale)  # (N, n_k, G)
    found = code_usage(indices, tokens.spec.codebook_sizes)
    return ScaleReport(
        side=tokens.spec.scales[scale],
        num_tokens=indices[..., 0].numel(),
        codes_used=found.codes_used,
        usage=found.usage,
        entropy_bits=found.entropy_bits,
        prefix_psnr=prefix_psnr,
    )

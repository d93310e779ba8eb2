"""What a tokenizer's reconstructions are worth: PSNR, SSIM, perceptual distance, rFID, code usage.

Images and reconstructions are compared as uint8, rounded half up; PSNR and SSIM are means over
images; rFID compares the reconstructions with the very images that were encoded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from common.config import config_class, to_dict
from common.data import DataConfig
from common.distances import frechet_distance
from common.extractors import (
    ExtractorConfig,
    ImageFeatures,
    InceptionFeatures,
    build_extractor,
)
from common.features import PerceptualConfig, PerceptualNone, build_perceptual
from common.images import from_uint8, to_uint8
from common.metrics import library_versions, psnr, save_metrics, ssim
from common.reference import (
    ImageSource,
    SubsetImages,
    collect_features,
    default_cache,
    image_batches,
    reference_features,
    spread,
)
from tokenizer.model import ImageTokenizer
from tokenizer.tokens import TokenPyramid


@config_class
class TokenizerEvaluationConfig:
    """How reconstructions are measured.

    Args:
        extractor: network of rFID; None skips it.
        perceptual: reported perceptual distance.
        num_images: images spread evenly over the data set; None takes all.
    """

    extractor: ExtractorConfig | None = InceptionFeatures()
    perceptual: PerceptualConfig = PerceptualNone()
    num_images: Annotated[int, Field(ge=2)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64


@config_class
class TokenizerEvaluationRun:
    """One file of `scripts/evaluate_tokenizer.py`.

    Args:
        split: which part of the data is reconstructed.
        out: result file; None writes `reconstruction.json` next to the model.
    """

    data: DataConfig
    split: Literal["train", "eval"] = "eval"
    evaluation: TokenizerEvaluationConfig = TokenizerEvaluationConfig()
    device: str = "cpu"
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


def evaluate_tokenizer(
    image_tokenizer: ImageTokenizer, dataset: ImageSource, config: TokenizerEvaluationConfig
) -> TokenizerEvaluation:
    """Encodes and decodes images of a data set and measures what comes back.

    Raises:
        ValueError: fewer images than asked for, images below 11 pixels, missing extractor weights.
    """
    started = time.monotonic()
    count = len(dataset) if config.num_images is None else config.num_images
    if not 2 <= count <= len(dataset):
        raise ValueError(
            f"num_images must lie in [2, {len(dataset)}], the size of the data set, got {count}"
        )
    device = image_tokenizer.device
    source = SubsetImages(dataset, spread(len(dataset), count))
    extractor = None if config.extractor is None else build_extractor(config.extractor, device)
    totals = _Totals(config, device)
    was_training = image_tokenizer.training
    image_tokenizer.eval()
    try:
        features: list[ImageFeatures] = []
        for batch in _reconstruct(image_tokenizer, source, config.batch_size):
            totals.update(batch)
            if extractor is not None:
                features.append(extractor(batch.prefixes[-1]))
    finally:
        image_tokenizer.train(was_training)
    rfid = None
    if extractor is not None:
        originals = reference_features(
            source, extractor, batch_size=config.batch_size, max_kept=1, cache=default_cache()
        )
        rfid = frechet_distance(collect_features(features).stats, originals.stats)
    protocol = {
        "num_images": count,
        "num_available": len(dataset),
        "config": to_dict(config),
        "extractor": None if extractor is None else extractor.identity,
        "psnr": "per image on uint8 rounded half up, mean over images",
        "ssim": "RGB, 11x11 Gaussian window of sigma 1.5, uint8, mean over images",
        "rfid_reference": "the images that were encoded",
        "versions": library_versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    if extractor is not None and count <= _width(features):
        protocol["warning"] = (
            f"{count} images for {_width(features)} features: covariances lack full rank, the "
            "distance is biased upwards and only comparable at equal counts"
        )
    return totals.report(image_tokenizer, count, rfid, protocol)


def _width(features: list[ImageFeatures]) -> int:
    return features[0].pooled.shape[1]


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


class _Totals:
    """Sums over batches."""

    def __init__(self, config: TokenizerEvaluationConfig, device: torch.device) -> None:
        self.device = device
        network = build_perceptual(config.perceptual)
        self.distance = None if network is None else network.to(device)
        self.tokens: list[TokenPyramid] = []
        self.psnr: list[Tensor] = []  # (B, K), K scales
        self.ssim: list[Tensor] = []
        self.perceptual: list[Tensor] = []

    @torch.no_grad()
    def update(self, batch: _Batch) -> None:
        final = batch.prefixes[-1]
        self.tokens.append(batch.tokens)
        self.psnr.append(torch.stack([psnr(p, batch.images) for p in batch.prefixes], dim=1))
        self.ssim.append(ssim(final, batch.images))
        if self.distance is not None:
            pair = (from_uint8(image).to(self.device) for image in (final, batch.images))
            self.perceptual.append(self.distance(*pair).double().cpu())

    def report(
        self,
        image_tokenizer: ImageTokenizer,
        count: int,
        rfid: float | None,
        protocol: dict[str, Any],
    ) -> TokenizerEvaluation:
        spec = image_tokenizer.spec
        tokens = TokenPyramid(torch.cat([t.indices for t in self.tokens]), spec)
        prefix_psnr = torch.cat(self.psnr).mean(dim=0).tolist()
        scales = tuple(
            scale_report(tokens, k, prefix_psnr=prefix_psnr[k]) for k in range(spec.num_scales)
        )
        pixels = image_tokenizer.config.image_size**2
        entropy = sum(
            scale.entropy_bits * length
            for scale, length in zip(scales, spec.scale_lengths, strict=True)
        )
        return TokenizerEvaluation(
            psnr=prefix_psnr[-1],
            ssim=float(torch.cat(self.ssim).mean()),
            perceptual=float(torch.cat(self.perceptual).mean()) if self.perceptual else None,
            rfid=rfid,
            codebook_usage=_num_used(tokens.indices) / sum(spec.codebook_sizes),
            bits_per_image=spec.bits_per_image,
            bits_per_pixel=spec.bits_per_image / pixels,
            entropy_bits_per_image=entropy,
            scales=scales,
            protocol=protocol,
        )


def scale_report(tokens: TokenPyramid, scale: int, *, prefix_psnr: float) -> ScaleReport:
    """Usage of the codebooks at one scale."""
    indices = tokens.scale(scale)  # (N, n_k, G)
    entropy = 0.0
    for codebook in range(tokens.spec.num_codebooks):
        _, counts = indices[..., codebook].unique(return_counts=True)
        share = counts.double() / counts.sum()
        entropy -= float((share * share.log()).sum()) / math.log(2)
    used = _num_used(indices)
    return ScaleReport(
        side=tokens.spec.scales[scale],
        num_tokens=indices[..., 0].numel(),
        codes_used=used,
        usage=used / sum(tokens.spec.codebook_sizes),
        entropy_bits=entropy,
        prefix_psnr=prefix_psnr,
    )


def _num_used(indices: Tensor) -> int:
    """Distinct codes of `(N, n, G)` tokens, summed over codebooks."""
    return sum(len(indices[..., g].unique()) for g in range(indices.shape[-1]))

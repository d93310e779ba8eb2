"""What pairs of images and reconstructions measure, whatever made them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor

from lambda24.common.config import config_class
from lambda24.common.images import from_uint8
from lambda24.common.metrics.distances import frechet_distance
from lambda24.common.metrics.extractors import (
    ExtractorConfig,
    ImageFeatures,
    InceptionFeatures,
    build_extractor,
)
from lambda24.common.metrics.pairs import MS_SSIM_SIDE, check_ms_ssim, ms_ssim, psnr, ssim
from lambda24.common.metrics.perceptual import (
    LPIPSPerceptual,
    PerceptualConfig,
    PerceptualDistance,
    PerceptualNone,
    build_perceptual,
)
from lambda24.common.metrics.reference import (
    ImageSource,
    collect_features,
    default_cache,
    reference_features,
)
from lambda24.common.processes import gather, main_first

DEFINITIONS = {
    "psnr": "10 log10(255² / MSE) per image on uint8 rounded half up, mean over images",
    "ssim": "RGB, 11x11 Gaussian window of sigma 1.5, uint8, mean over images",
    "ms_ssim": "pytorch-msssim: five scales, RGB, uint8, mean over images; None below 161 pixels",
    "lpips": "lpips 0.1 of the network in the config, on uint8 values, mean over images",
    "perceptual": "distance of the network in the config, on uint8 values, mean over images",
    "rfid": "Fréchet distance of all reconstructions to the very images that were encoded",
}


@config_class
class TokenizerEvaluationConfig:
    """How reconstructions are measured.

    Args:
        extractor: network of rFID; None skips it.
        perceptual: reported perceptual distance.
        lpips: also report LPIPS, in a column of its own; network "alex" is the usual number.
        ms_ssim: also report MS-SSIM, which needs images of 161 pixels.
        num_images: images spread evenly over the data set; None takes all.
    """

    extractor: ExtractorConfig | None = InceptionFeatures()
    perceptual: PerceptualConfig = PerceptualNone()
    lpips: LPIPSPerceptual | None = None
    ms_ssim: bool = False
    num_images: Annotated[int, Field(ge=2)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64


@dataclass(frozen=True)
class ReconstructionScores:
    """Means over images; what was not asked for, or cannot be measured, is None."""

    psnr: float
    ssim: float
    ms_ssim: float | None
    lpips: float | None
    perceptual: float | None
    rfid: float | None


class ReconstructionMeter:
    """Takes batches of image pairs, then reports.

    Args:
        device: where the networks run.
        accelerator: joins the results of its processes, each of which measured its share of the
            positions (`common.processes.share`).

    Raises:
        ValueError: missing packages or weights.
    """

    def __init__(
        self,
        config: TokenizerEvaluationConfig,
        device: torch.device,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.config, self.device, self.accelerator = config, device, accelerator
        if config.ms_ssim:
            check_ms_ssim()
        configs = {"perceptual": config.perceptual, "lpips": config.lpips or PerceptualNone()}
        self._networks: dict[str, PerceptualDistance] = {}
        for name, choice in configs.items():
            if (network := build_perceptual(choice)) is not None:
                self._networks[name] = network.to(device)
        extractor = config.extractor
        self.extractor = None if extractor is None else build_extractor(extractor, device)
        self._scores: dict[str, list[Tensor]] = {}
        self._features: list[ImageFeatures] = []

    @torch.no_grad()
    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        """Adds uint8 pairs, both (B, 3, H, W)."""
        values = {"psnr": psnr(reconstructions, images), "ssim": ssim(reconstructions, images)}
        if self.config.ms_ssim and min(images.shape[-2:]) >= MS_SSIM_SIDE:
            values["ms_ssim"] = ms_ssim(reconstructions, images)
        for name, network in self._networks.items():
            pair = (from_uint8(x).to(self.device) for x in (reconstructions, images))
            values[name] = network(*pair).double().cpu()
        for name, value in values.items():
            self._scores.setdefault(name, []).append(value)
        if self.extractor is not None:
            self._features.append(replace(self.extractor(reconstructions), spatial=None))

    def report(self, source: ImageSource) -> ReconstructionScores:
        """Means over all processes' pairs; `source` holds the encoded images, in order."""
        count = len(source)
        means: dict[str, Any] = dict.fromkeys(ReconstructionScores.__dataclass_fields__)
        for name, values in self._scores.items():
            means[name] = float(gather(torch.cat(values), count, self.accelerator).mean())
        return ReconstructionScores(**{**means, "rfid": self._rfid(source)})

    @property
    def feature_width(self) -> int | None:
        """Numbers in a feature of rFID's network."""
        return self._features[0].pooled.shape[1] if self._features else None

    def _rfid(self, source: ImageSource) -> float | None:
        if self.extractor is None:
            return None
        pooled = torch.cat([features.pooled for features in self._features])
        everyone = ImageFeatures(gather(pooled, len(source), self.accelerator), None)
        with main_first(self.accelerator):
            originals = reference_features(
                source,
                self.extractor,
                batch_size=self.config.batch_size,
                max_kept=1,
                cache=default_cache(),
            )
        return frechet_distance(collect_features([everyone]).stats, originals.stats)

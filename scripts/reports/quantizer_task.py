"""The autoencoder in which quantizers are compared, its training and its measurement.

One token per latent position, no pyramid: encoder, quantizer, decoder. What differs between
contenders is the quantizer and the number of latent channels it asks for.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from lambda24.common.config import config_class
from lambda24.common.data.batches import Batch
from lambda24.common.data.dataset import ImageDataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.images import from_uint8, make_grid, to_uint8
from lambda24.common.metrics.reference import SubsetImages, image_batches, spread
from lambda24.common.optim.adamw import OptimizerConfig, build_optimizer
from lambda24.common.optim.ema import EMA
from lambda24.common.optim.gradients import gradient_step
from lambda24.common.training.loop import LoopConfig, Task
from lambda24.tokenizer.autoencoders.build import AutoencoderConfig, build_autoencoder
from lambda24.tokenizer.losses import ReconstructionLoss, ReconstructionLossConfig
from lambda24.tokenizer.meter import ReconstructionMeter, TokenizerEvaluationConfig
from lambda24.tokenizer.quantizers import (
    Quantized,
    QuantizerConfig,
    build_quantizer,
)
from lambda24.tokenizer.usage import code_usage


@config_class
class Contender:
    """A quantizer and the name and group of its row."""

    name: str
    group: str
    quantizer: QuantizerConfig


@config_class
class ComparisonConfig:
    """One comparison: every contender with every seed.

    Args:
        run: folder of all runs, results, table and plots.
        seeds: of initial weights and sample order; codes keep the seeds of their configs.
        init_images: training images whose latents initialise the codebooks that ask for data.
    """

    run: str
    data: DataConfig
    contenders: tuple[Contender, ...]
    autoencoder: AutoencoderConfig
    optimizer: OptimizerConfig
    loop: LoopConfig
    loss: ReconstructionLossConfig = ReconstructionLossConfig()
    evaluation: TokenizerEvaluationConfig = TokenizerEvaluationConfig()
    seeds: tuple[int, ...] = (0, 1, 2)
    ema_decay: float = 0.99
    init_images: int = 256

    def __post_init__(self) -> None:
        names = [contender.name for contender in self.contenders]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"contenders need distinct names, got {names}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be distinct and at least one, got {self.seeds}")
        if self.data.image_size % self.autoencoder.stride:
            raise ValueError(
                f"data.image_size {self.data.image_size} must be divisible by the stride "
                f"{self.autoencoder.stride} of the autoencoder"
            )


class QuantizedAutoencoder(nn.Module):
    """Images (B, 3, H, W) to one token per latent position and back."""

    def __init__(
        self, autoencoder: AutoencoderConfig, quantizer: QuantizerConfig, image_size: int
    ) -> None:
        super().__init__()
        self.quantizer = build_quantizer(quantizer)
        self.encoder, self.decoder = build_autoencoder(autoencoder, self.quantizer.dim, image_size)

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        quantized = self.quantizer(self.latents(images))
        return self.decode_codes(quantized.z_q), quantized

    def latents(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to latents (B, h, w, D)."""
        return rearrange(self.encoder(images), "b c h w -> b h w c")

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w, D) to images (B, 3, H, W), not clamped."""
        images: Tensor = self.decoder(rearrange(codes, "b h w c -> b c h w"))
        return images.float()


class ComparisonTask(Task):
    """Autoencoding with one contender."""

    def __init__(
        self,
        config: ComparisonConfig,
        contender: Contender,
        seed: int,
        train_data: ImageDataset,
        eval_data: ImageDataset,
    ) -> None:
        self.config = config
        self.train_data, self.eval_data = train_data, eval_data
        self.memory_before = resident_peak_mib()
        torch.manual_seed(seed)
        self.autoencoder = QuantizedAutoencoder(
            config.autoencoder, contender.quantizer, config.data.image_size
        )
        self.modules = {"autoencoder": self.autoencoder}
        self.loss = ReconstructionLoss(config.loss)
        self.optimizer = build_optimizer(self.autoencoder, config.optimizer)

    def prepare(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.loss.to(accelerator.device)
        self.autoencoder.to(accelerator.device)
        self._init_codebook()
        self.ema = EMA(self.autoencoder, self.config.ema_decay)
        self.model, self.optimizer = accelerator.prepare(self.autoencoder, self.optimizer)

    @torch.no_grad()
    def _init_codebook(self) -> None:
        count = min(self.config.init_images, len(self.train_data))
        images = from_uint8(self.train_data.images_uint8(spread(len(self.train_data), count)))
        chunks = images.to(self.accelerator.device).split(64)
        latents = torch.cat([self.autoencoder.latents(chunk).float() for chunk in chunks])
        self.autoencoder.quantizer.init_from_data(latents)

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        steps = self.config.loop.steps
        self.autoencoder.quantizer.schedule(step, steps)
        scalars = gradient_step(
            self.accelerator,
            self.model,
            self.optimizer,
            self.config.optimizer,
            batches,
            self._losses,
            step=step,
            total_steps=steps,
        )
        self.autoencoder.quantizer.after_step()
        self.ema.update(step)
        return scalars

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        with self.accelerator.autocast():
            images, quantized = self.model(batch.images)
        reconstruction = self.loss(images, batch.images)
        total = reconstruction.total + self.autoencoder.quantizer.total_loss(quantized.losses)
        return {"loss": total, **reconstruction.terms, **quantized.losses, **quantized.stats}

    def evaluate(self, step: int) -> dict[str, float]:
        """The measured fields of a `ComparisonResult`, with the averaged weights."""
        device = self.accelerator.device
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device) / 2**20
        else:
            peak = resident_peak_mib() - self.memory_before
        # Taken before the metrics' networks join in.
        return {"peak_memory_mib": peak, **self._measure()}

    def sample(self, step: int) -> Image.Image:
        """Eight held-out images above their reconstructions."""
        originals = self.eval_data.images_uint8(
            spread(len(self.eval_data), min(8, len(self.eval_data)))
        )
        return make_grid(torch.cat([originals, self.reconstruct(originals)[0]]), columns=8)

    def state_dict(self) -> dict[str, Any]:
        return {
            "autoencoder": self.autoencoder.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.autoencoder.load_state_dict(state["autoencoder"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])

    def save_pretrained(self, folder: Path) -> None:
        """Nothing: a comparison keeps numbers, not models."""

    @torch.no_grad()
    def reconstruct(self, originals: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (N, 3, H, W) to reconstructions, uint8, and tokens (N, h, w, G)."""
        average = self.ema.average
        assert isinstance(average, QuantizedAutoencoder)
        outputs, indices = [], []
        for chunk in originals.split(64):
            with self.accelerator.autocast():
                latents = average.latents(from_uint8(chunk).to(self.accelerator.device))
                tokens = average.quantizer.encode(latents)
                images = average.decode_codes(average.quantizer.decode(tokens))
            outputs.append(to_uint8(images.clamp(-1, 1)).cpu())
            indices.append(tokens.cpu())
        return torch.cat(outputs), torch.cat(indices)

    def _measure(self) -> dict[str, float]:
        config, data = self.config.evaluation, self.eval_data
        count = len(data) if config.num_images is None else config.num_images
        if not 2 <= count <= len(data):
            raise ValueError(f"evaluation.num_images must lie in [2, {len(data)}], got {count}")
        source = SubsetImages(data, spread(len(data), count))
        meter, tokens = ReconstructionMeter(config, self.accelerator.device), []
        for images in image_batches(source, config.batch_size):
            outputs, indices = self.reconstruct(images)
            tokens.append(indices)
            meter.update(images, outputs)
        scores = asdict(meter.report(source))
        measured = {name: value for name, value in scores.items() if value is not None}
        indices = torch.cat(tokens)
        usage = code_usage(indices, self.autoencoder.quantizer.codebook_sizes)
        return {**measured, **asdict(usage), "num_tokens": float(indices[..., 0].numel())}


def resident_peak_mib() -> float:
    """The most memory that this process has held so far (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

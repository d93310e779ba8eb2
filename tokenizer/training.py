"""Stage 1: trains an `ImageTokenizer`. The algorithm only; `common.loop.fit` owns the loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from PIL import Image
from pydantic import Field
from torch import Tensor

from common.config import config_class
from common.data import Batch, DataConfig, ImageDataset, uniform_from_keys
from common.images import from_uint8, make_grid, to_uint8
from common.loop import LoopConfig, Task
from common.metrics import psnr
from common.optim import EMA, OptimizerConfig, build_optimizer, gradient_step
from tokenizer.losses import ReconstructionLoss, ReconstructionLossConfig
from tokenizer.model import ImageTokenizer, Reconstruction, TokenizerConfig
from tokenizer.multiscale import usage
from tokenizer.quantizers import connect_processes
from tokenizer.tokens import TokenPyramid

SCALE_DROPOUT_STREAM = 100
"""Names the random stream of scale dropout among a sample's streams (`uniform_from_keys`)."""


@config_class
class TokenizerTrainingConfig:
    """One stage-1 run: `python scripts/train_tokenizer.py FILE.yaml`.

    Args:
        scale_dropout: share of training images that are decoded from their first 1 to S - 1 scales
            only, which makes coarse scales carry what a generator must decide first.
    """

    run: str
    data: DataConfig
    model: TokenizerConfig
    optimizer: OptimizerConfig
    loop: LoopConfig
    loss: ReconstructionLossConfig = ReconstructionLossConfig()
    scale_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    ema_decay: float = 0.999
    num_eval_images: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.data.image_size != self.model.image_size:
            raise ValueError(
                f"data.image_size {self.data.image_size} must equal model.image_size "
                f"{self.model.image_size}"
            )


class TokenizerTask(Task):
    """Autoencoding with a quantized bottleneck.

    Args:
        config: the run.
        eval_data: held-out images; each evaluation reconstructs the first `num_eval_images`.
    """

    def __init__(self, config: TokenizerTrainingConfig, eval_data: ImageDataset) -> None:
        self.config = config
        self.eval_data = eval_data
        torch.manual_seed(config.seed)
        self.image_tokenizer = ImageTokenizer(config.model)
        self.modules = {"tokenizer": self.image_tokenizer}
        self.loss = ReconstructionLoss(config.loss)
        self.ema = EMA(self.image_tokenizer, config.ema_decay)
        self.optimizer = build_optimizer(self.image_tokenizer, config.optimizer)

    def prepare(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.loss.to(accelerator.device)
        self.ema.average.to(accelerator.device)
        connect_processes(self.image_tokenizer)
        self.model, self.optimizer = accelerator.prepare(self.image_tokenizer, self.optimizer)

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        steps = self.config.loop.steps
        leaf = self.image_tokenizer.pyramid.leaf
        leaf.schedule(step, steps)
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
        leaf.after_step()
        self.ema.update(step)
        return scalars

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        with self.accelerator.autocast():
            output: Reconstruction = self.model(batch.images, self._num_kept(batch))
        reconstruction = self.loss(output.images, batch.images)
        total = reconstruction.total + output.quantizer_loss
        parts = {"loss": total, "quantizer": output.quantizer_loss}
        return {**parts, **reconstruction.terms, **output.stats}

    def _num_kept(self, batch: Batch) -> Tensor | None:
        """Scale dropout: all S scales, or, with its probability, 1 to S - 1 of them."""
        count = self.image_tokenizer.spec.num_scales
        if not self.config.scale_dropout or count == 1:
            return None
        draws = uniform_from_keys(batch.keys, SCALE_DROPOUT_STREAM, (2,))  # (B, 2)
        fewer = 1 + (draws[:, 1] * (count - 1)).long()
        return torch.where(draws[:, 0] < self.config.scale_dropout, fewer, count)

    def evaluate(self, step: int) -> dict[str, float]:
        """PSNR (dB, uint8) of the averaged weights on held-out images, and usage per scale."""
        images, reconstructions, tokens = self._reconstruct(self.config.num_eval_images)
        return {"psnr": float(psnr(reconstructions, images).mean()), **usage(tokens)}

    def sample(self, step: int) -> Image.Image:
        """Rows of eight held-out images, each above its reconstructions."""
        images, reconstructions, _ = self._reconstruct(24)
        rows = zip(images.split(8), reconstructions.split(8), strict=True)
        return make_grid(torch.cat([half for row in rows for half in row]), columns=8)

    def state_dict(self) -> dict[str, Any]:
        return {
            "tokenizer": self.image_tokenizer.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.image_tokenizer.load_state_dict(state["tokenizer"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])

    def describe(self) -> str:
        """Parameters, tokens and bits, for a dry run."""
        parts = {
            name: sum(parameter.numel() for parameter in part.parameters())
            for name, part in self.image_tokenizer.named_children()
        }
        spec, pixels = self.image_tokenizer.spec, self.config.model.image_size**2
        bits = spec.bits_per_image
        return "\n".join(
            [
                *(f"{name}: {count:,} parameters" for name, count in parts.items()),
                f"scales {spec.scales}: {spec.length} tokens of {spec.bits_per_token:.2f} bits",
                f"{bits:,.0f} bits per image, {bits / pixels:.3f} bits per pixel",
                f"{self.config.loop.steps:,} steps of {self.config.loop.batch_size} images",
            ]
        )

    def save_pretrained(self, folder: Path) -> None:
        """Writes `tokenizer/` with the averaged weights."""
        self.ema.average.save_pretrained(folder / ImageTokenizer.folder_name)

    @torch.no_grad()
    def _reconstruct(self, count: int) -> tuple[Tensor, Tensor, TokenPyramid]:
        """The first `count` held-out images and their reconstructions, uint8 (N, 3, H, W)."""
        originals = self.eval_data.images_uint8(range(min(count, len(self.eval_data))))
        outputs, indices = [], []
        for chunk in originals.split(64):
            with self.accelerator.autocast():
                tokens = self.ema.average.encode(from_uint8(chunk).to(self.accelerator.device))
                outputs.append(to_uint8(self.ema.average.decode(tokens)).cpu())
            indices.append(tokens.indices)
        return originals, torch.cat(outputs), TokenPyramid(torch.cat(indices), tokens.spec)

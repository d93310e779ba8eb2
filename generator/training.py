"""Stage 2: trains a `NextScaleGenerator` on the tokens of a frozen tokenizer.

The algorithm only; `common.loop.fit` owns the loop. Tokens are computed online from augmented
images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from common.config import config_class
from common.data import Batch, DataConfig, ImageDataset, uniform_from_keys
from common.images import from_uint8
from common.loop import LoopConfig, Task
from common.optim import EMA, OptimizerConfig, build_optimizer, gradient_step
from generator.heads import TokenLoss
from generator.model import GeneratorConfig, NextScaleGenerator
from tokenizer import ImageTokenizer, TokenPyramid

CLASS_DROPOUT_STREAM = 101
"""Names the random stream of class dropout among a sample's streams (`uniform_from_keys`)."""


@config_class
class GeneratorTrainingConfig:
    """One stage-2 run: `python scripts/train_generator.py FILE.yaml tokenizer=FOLDER`."""

    run: str
    tokenizer: str
    data: DataConfig
    model: GeneratorConfig
    optimizer: OptimizerConfig
    loop: LoopConfig
    z_loss_weight: float = 1e-4
    class_dropout: float = 0.1
    ema_decay: float = 0.999
    num_eval_images: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.class_dropout < 1:
            raise ValueError(f"class_dropout must lie in [0, 1), got {self.class_dropout}")
        if self.z_loss_weight < 0:
            raise ValueError(f"z_loss_weight must not be negative, got {self.z_loss_weight}")


class TeacherForcing(nn.Module):
    """Trunk and head in one forward pass, so that DDP sees every parameter used inside it."""

    def __init__(self, generator: NextScaleGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, inputs: Tensor, labels: Tensor, indices: Tensor) -> TokenLoss:
        hidden = self.generator(inputs, labels)  # (B, L, W)
        return self.generator.head.loss(hidden, indices)


class GeneratorTask(Task):
    """Next-scale prediction with teacher forcing.

    Args:
        config: the run.
        image_tokenizer: frozen stage-1 model.
        eval_data: held-out images for the evaluation loss.
        draw: makes the sample grid of a generator (sampling lies above this package).

    Raises:
        ValueError: the data's classes or image size are not those of the model or tokenizer.
    """

    def __init__(
        self,
        config: GeneratorTrainingConfig,
        image_tokenizer: ImageTokenizer,
        eval_data: ImageDataset,
        draw: Callable[[NextScaleGenerator], Image.Image] | None = None,
    ) -> None:
        if eval_data.num_classes != config.model.num_classes:
            raise ValueError(
                f"model.num_classes is {config.model.num_classes}, but the data has "
                f"{eval_data.num_classes} classes {eval_data.label_names[:5]}"
            )
        if config.data.image_size != image_tokenizer.config.image_size:
            raise ValueError(
                f"data.image_size is {config.data.image_size}, but the tokenizer was trained at "
                f"{image_tokenizer.config.image_size}"
            )
        self.config = config
        self.image_tokenizer = image_tokenizer.eval().requires_grad_(False)
        self.eval_data = eval_data
        self.draw = draw
        spec = image_tokenizer.spec
        torch.manual_seed(config.seed)
        self.generator = NextScaleGenerator(config.model, spec, eval_data.label_names)
        self.modules = {"generator": self.generator}
        self.ema = EMA(self.generator, config.ema_decay)
        self.optimizer = build_optimizer(self.generator, config.optimizer)

    def prepare(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.image_tokenizer.to(accelerator.device)
        self.ema.average.to(accelerator.device)
        model = TeacherForcing(self.generator)
        self.model, self.optimizer = accelerator.prepare(model, self.optimizer)

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        scalars = gradient_step(
            self.accelerator,
            self.model,
            self.optimizer,
            self.config.optimizer,
            batches,
            self._batch_losses,
            step=step,
            total_steps=self.config.loop.steps,
        )
        self.ema.update(step)
        return scalars

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """Nats per token of the averaged weights on held-out images, all scales and each."""
        totals: dict[str, float] = {}
        count = min(self.config.num_eval_images, len(self.eval_data))
        model = TeacherForcing(self.ema.average)
        for chunk in torch.arange(count).split(64):
            images = from_uint8(self.eval_data.images_uint8(chunk.tolist()))
            labels = self.eval_data.labels[chunk].to(self.accelerator.device)
            tokens, inputs = self._tokenize(images.to(self.accelerator.device))
            for name, value in self._losses(model, inputs, labels, tokens).items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(chunk) / count
        return totals

    def sample(self, step: int) -> Image.Image | None:
        return self.draw(self.ema.average) if self.draw is not None else None

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])

    def describe(self) -> str:
        """Parameters and tokens, for a dry run."""
        count = sum(parameter.numel() for parameter in self.generator.parameters())
        head = sum(parameter.numel() for parameter in self.generator.head.parameters())
        spec = self.generator.spec
        return "\n".join(
            [
                f"generator: {count:,} parameters, of which the head {head:,}",
                f"scales {spec.scales}: {spec.length} tokens of {spec.bits_per_token:.2f} bits",
                f"{self.config.loop.steps:,} steps of {self.config.loop.batch_size} images",
            ]
        )

    def save_pretrained(self, folder: Path) -> None:
        """Writes a pipeline folder: `generator/` with the averaged weights, and `tokenizer/`."""
        self.ema.average.save_pretrained(folder / NextScaleGenerator.folder_name)
        self.image_tokenizer.save_pretrained(folder / ImageTokenizer.folder_name)

    def _tokenize(self, images: Tensor) -> tuple[TokenPyramid, Tensor]:
        with self.accelerator.autocast():
            tokens = self.image_tokenizer.encode(images)
        return tokens, self.image_tokenizer.next_scale_inputs(tokens)

    def _batch_losses(self, batch: Batch) -> dict[str, Tensor]:
        tokens, inputs = self._tokenize(batch.images)
        return self._losses(self.model, inputs, self._drop_labels(batch), tokens)

    def _drop_labels(self, batch: Batch) -> Tensor:
        """Replaces a sample's label by the null class with probability `class_dropout`."""
        draws = uniform_from_keys(batch.keys, CLASS_DROPOUT_STREAM, ())  # (B,)
        null = torch.full_like(batch.labels, self.config.model.num_classes)
        return torch.where(draws < self.config.class_dropout, null, batch.labels)

    def _losses(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, tokens: TokenPyramid
    ) -> dict[str, Tensor]:
        """`loss` with gradient; mean nats per token, per scale, and mean |log Z|."""
        with self.accelerator.autocast():
            losses = model(inputs, labels, tokens.indices)
        nll = losses.nll.mean()
        found = {
            "loss": nll + self.config.z_loss_weight * losses.log_z.square().mean(),
            "nll": nll,
            "abs_log_z": losses.log_z.abs().mean(),
        }
        for k in range(tokens.spec.num_scales):
            found[f"nll_{k}"] = losses.nll[:, tokens.spec.scale_slice(k)].mean()
        return found

"""The adversary of stage 1: a discriminator, its losses, its optimizer and its schedule.

A step is two separate passes. The generator's pass sees the discriminator with frozen weights, so
it leaves no gradient there; the discriminator's pass sees detached reconstructions. Nothing here
depends on how a batch is spread over processes and, with a fixed weight, over micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lambda24.common.config import config_class
from lambda24.common.data.batches import Batch
from lambda24.common.optim.adamw import OptimizerConfig, build_optimizer
from lambda24.common.optim.gradients import gradient_step
from lambda24.tokenizer.adversary.diffaugment import DiffAugmentConfig, diff_augment
from lambda24.tokenizer.adversary.discriminators import DiscriminatorConfig, build_discriminator

REAL_STREAM, FAKE_STREAM, GENERATOR_STREAM = 102, 103, 104
"""Random streams of the samples' keys that augment what the discriminator sees."""


@config_class
class HingeConfig:
    """Hinge loss (arXiv 1705.02894), halved as in VQGAN; the generator maximises the logits."""

    kind: Literal["hinge"] = "hinge"


@config_class
class NonSaturatingConfig:
    """Logistic loss, non-saturating for the generator, with lazy R1 (arXiv 1912.04958).

    Args:
        r1_gamma: weight gamma / 2 of the squared gradient norm at real images; 0 is none.
        r1_interval: steps between penalties, each `r1_interval` times as strong.
    """

    kind: Literal["non_saturating"] = "non_saturating"
    r1_gamma: Annotated[float, Field(ge=0)] = 10.0
    r1_interval: Annotated[int, Field(ge=1)] = 16


AdversarialLossConfig = Annotated[HingeConfig | NonSaturatingConfig, Field(discriminator="kind")]


@config_class
class AdversaryConfig:
    """What the reconstructions are judged by.

    Args:
        weight: of the generator's adversarial loss.
        adaptive: multiplies `weight` by the ratio of the gradients of the reconstruction loss and
            of the adversarial loss at the decoder's last weight (`adaptive_weight`), for each
            micro-batch over all processes.
        start_step: first step of both the discriminator and the adversarial loss. The
            discriminator's learning rate schedule starts there too.
    """

    discriminator: DiscriminatorConfig
    loss: AdversarialLossConfig = HingeConfig()
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-4, betas=(0.5, 0.9), weight_decay=0.0)
    weight: Annotated[float, Field(gt=0)] = 0.1
    adaptive: bool = False
    start_step: Annotated[int, Field(ge=0)] = 0
    augment: DiffAugmentConfig | None = None


class DiscriminatorLoss(nn.Module):
    """All of the discriminator's step in one forward pass, as DDP needs."""

    def __init__(self, config: AdversaryConfig, image_size: int) -> None:
        super().__init__()
        self.config = config
        self.discriminator = build_discriminator(config.discriminator, image_size)

    def forward(
        self, images: Tensor, reconstructions: Tensor, keys: Tensor, *, penalize: bool
    ) -> dict[str, Tensor]:
        """`loss` with gradient and named scalars.

        Args:
            images, reconstructions: (B, 3, H, W) in [-1, 1], without gradient.
            penalize: adds R1.
        """
        seen = [
            self.augment(images, keys, REAL_STREAM),
            self.augment(reconstructions, keys, FAKE_STREAM),
        ]
        real, fake = self.discriminator(torch.cat(seen)).chunk(2)
        loss = discriminator_loss(real, fake, self.config.loss)
        found = {"d_loss": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        if penalize:
            assert isinstance(self.config.loss, NonSaturatingConfig)
            found["r1"] = self.gradient_penalty(images, keys)
            lazy = self.config.loss.r1_gamma / 2 * self.config.loss.r1_interval
            loss = loss + lazy * found["r1"]
        return {"loss": loss, **found}

    def gradient_penalty(self, images: Tensor, keys: Tensor) -> Tensor:
        """Mean squared norm of the gradient of an image's mean logit, in fp32."""
        # Fused attention kernels have no second derivative.
        with torch.autocast(images.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            images = images.detach().float().requires_grad_()
            logits = self.discriminator(self.augment(images, keys, REAL_STREAM))
            score = logits.mean(dim=1).sum()
            (gradient,) = torch.autograd.grad(score, images, create_graph=True)
            return gradient.square().sum(dim=(1, 2, 3)).mean()

    def augment(self, images: Tensor, keys: Tensor, stream: int) -> Tensor:
        """What the discriminator sees of images (B, 3, H, W)."""
        if self.config.augment is None:
            return images
        return diff_augment(images, keys, stream, self.config.augment)


class Adversary:
    """Discriminator and its optimizer, as a part of a task."""

    def __init__(self, config: AdversaryConfig, image_size: int) -> None:
        self.config = config
        self.module = DiscriminatorLoss(config, image_size)
        self.discriminator = self.module.discriminator
        self.optimizer: torch.optim.Optimizer = build_optimizer(
            self.discriminator, config.optimizer
        )

    def prepare(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.prepared, self.optimizer = accelerator.prepare(self.module, self.optimizer)

    def is_active(self, step: int) -> bool:
        return step >= self.config.start_step

    def generator_loss(self, batch: Batch, reconstructions: Tensor) -> Tensor:
        """Unweighted loss of reconstructions (B, 3, H, W); no gradient to the discriminator."""
        with frozen(self.discriminator), self.accelerator.autocast():
            seen = self.module.augment(reconstructions, batch.keys, GENERATOR_STREAM)
            return generator_loss(self.discriminator(seen), self.config.loss)

    def train_step(
        self,
        batches: Sequence[Batch],
        reconstructions: Sequence[Tensor],
        step: int,
        total_steps: int,
    ) -> dict[str, Tensor]:
        """The discriminator's step on micro-batches and their detached reconstructions."""
        since = step - self.config.start_step
        loss = self.config.loss
        penalize = (
            isinstance(loss, NonSaturatingConfig)
            and loss.r1_gamma > 0
            and since % loss.r1_interval == 0
        )
        fakes = iter(reconstructions)

        def losses(batch: Batch) -> dict[str, Tensor]:
            found: dict[str, Tensor] = self.prepared(
                batch.images, next(fakes), batch.keys, penalize=penalize
            )
            return found

        scalars = gradient_step(
            self.accelerator,
            self.prepared,
            self.optimizer,
            self.config.optimizer,
            batches,
            losses,
            step=since,
            total_steps=max(1, total_steps - self.config.start_step),
        )
        self.discriminator.after_step()
        del scalars["loss"]  # d_loss plus the penalty of some steps
        scalars["d_gradient_norm"] = scalars.pop("gradient_norm")
        scalars["d_lr"] = scalars.pop("lr")
        return scalars

    def state_dict(self) -> dict[str, Any]:
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])


def discriminator_loss(real: Tensor, fake: Tensor, config: AdversarialLossConfig) -> Tensor:
    """Mean loss of logits of real images and of reconstructions."""
    match config:
        case HingeConfig():
            return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        case NonSaturatingConfig():
            return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor, config: AdversarialLossConfig) -> Tensor:
    """Mean loss of the reconstructions' logits, low where they pass for real."""
    match config:
        case HingeConfig():
            return -fake.mean()
        case NonSaturatingConfig():
            return F.softplus(-fake).mean()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Gradients flow through the module inside, but not to its parameters."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)

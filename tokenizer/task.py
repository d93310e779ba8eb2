"""Stage 1: trains an `ImageTokenizer`. The algorithm only; `fit` owns the loop.

A step is the tokenizer's pass (reconstruction, prefixes, alignment, adversary) and its optimizer,
then, once the adversary has started, the discriminator's pass over the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
from accelerate import Accelerator
from accelerate.utils import DistributedType
from PIL import Image
from torch import Tensor, nn

from lambda24.common.data.batches import Batch, uniform_from_keys
from lambda24.common.data.dataset import ImageDataset
from lambda24.common.images import from_uint8, make_grid, to_uint8
from lambda24.common.metrics.pairs import psnr
from lambda24.common.metrics.reference import spread
from lambda24.common.optim.adamw import build_optimizer
from lambda24.common.optim.ema import EMA
from lambda24.common.optim.gradients import gradient_step
from lambda24.common.optim.schedule import warn_of_long_warmup
from lambda24.common.training.loop import Task
from lambda24.tokenizer.adversary.adaptive import adaptive_weight
from lambda24.tokenizer.adversary.adversary import Adversary, AdversaryConfig
from lambda24.tokenizer.losses import ReconstructionLoss
from lambda24.tokenizer.model import ImageTokenizer, Reconstruction
from lambda24.tokenizer.settings import TokenizerTrainingConfig
from lambda24.tokenizer.teachers.alignment import AlignmentConfig, VFAlignment
from lambda24.tokenizer.tokens import TokenPyramid
from lambda24.tokenizer.usage import UsageWindow, usage

SCALE_DROPOUT_STREAM, PREFIX_STREAM = 100, 105
"""Names random streams among a sample's streams (`uniform_from_keys`)."""


class AlignedTokenizer(nn.Module):
    """Tokenizer and alignment in one forward pass, so that DDP sees every trained parameter."""

    def __init__(self, image_tokenizer: ImageTokenizer, alignment: VFAlignment | None) -> None:
        super().__init__()
        self.tokenizer = image_tokenizer
        self.alignment = alignment

    def forward(
        self, images: Tensor, num_kept: Tensor | None, prefix: Tensor | None
    ) -> tuple[Reconstruction, dict[str, Tensor]]:
        """See `ImageTokenizer.forward`; and the unweighted terms of the alignment, if any."""
        output: Reconstruction = self.tokenizer(images, num_kept, prefix)
        return output, {} if self.alignment is None else self.alignment(output.latent, images)


class TokenizerTask(Task):
    """Autoencoding with a quantized bottleneck.

    Args:
        config: the run.
        eval_data: held-out images; each evaluation reconstructs `num_eval_images`, evenly spaced.
    """

    def __init__(self, config: TokenizerTrainingConfig, eval_data: ImageDataset) -> None:
        self.config = config
        self.eval_data = eval_data
        torch.manual_seed(config.seed)
        self.image_tokenizer = ImageTokenizer(config.model)
        self.alignment: VFAlignment | None = None
        self.adversary: Adversary | None = None
        if config.alignment is not None:
            self.alignment = VFAlignment(config.alignment, self.image_tokenizer.spec.code_dim)
        if config.adversary is not None:
            self.adversary = Adversary(config.adversary, config.model.image_size)
        self.loss = ReconstructionLoss(config.loss)
        self.ema = EMA(self.image_tokenizer, config.ema_decay)
        self.window = UsageWindow(self.image_tokenizer.spec)
        self.model: nn.Module = AlignedTokenizer(self.image_tokenizer, self.alignment)
        self.optimizer: torch.optim.Optimizer = build_optimizer(self.model, config.optimizer)
        self.modules = {"tokenizer": self.image_tokenizer}
        if self.alignment is not None:
            self.modules["alignment"] = self.alignment
        if self.adversary is not None:
            self.modules["discriminator"] = self.adversary.discriminator

    def prepare(self, accelerator: Accelerator) -> None:
        """Wraps modules and optimizers.

        Raises:
            ValueError: sharded parameters with an adversary, an adaptive weight or revival of a
                table's codes, or micro-batches that cut the discriminator's groups of samples.
        """
        warn_of_long_warmup(self.config.optimizer, self.config.loop.steps)
        self.accelerator = accelerator
        self._check_processes()
        self.loss.to(accelerator.device)
        self.ema.average.to(accelerator.device)
        if self.config.compile:
            if self.config.has_adaptive_weight:
                # Their gradients keep the graph, which buffers reused by a backward pass would not.
                torch._functorch.config.donated_buffer = False
            self.image_tokenizer.encoder.compile()
            self.image_tokenizer.decoder.compile()
        self.model, self.optimizer = accelerator.prepare(self.model, self.optimizer)
        if self.adversary is not None:
            self.adversary.prepare(accelerator)

    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        steps = self.config.loop.steps
        quantizer = self.image_tokenizer.pyramid.quantizer
        quantizer.schedule(step, steps)
        reconstructions: list[Tensor] = []

        def losses(batch: Batch) -> dict[str, Tensor]:
            images, scalars = self._losses(batch, step)
            reconstructions.append(images)
            return scalars

        scalars = gradient_step(
            self.accelerator,
            self.model,
            self.optimizer,
            self.config.optimizer,
            batches,
            losses,
            step=step,
            total_steps=steps,
        )
        quantizer.after_step()
        self.ema.update(step)
        if self.adversary is not None and self.adversary.is_active(step):
            scalars |= self.adversary.train_step(batches, reconstructions, step, steps)
        if (step + 1) % self.config.loop.log_every == 0:
            scalars |= self.window.report(quantizer.reduce_mean)
        return scalars

    def _losses(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Detached reconstructions (B, 3, H, W) and the scalars of the tokenizer's pass."""
        with self.accelerator.autocast():
            output: Reconstruction
            output, aligned = self.model(batch.images, self._num_kept(batch), self._prefix(batch))
        self.window.add(output.tokens)
        reconstruction = self.loss(output.images, batch.images)
        total = reconstruction.total + output.quantizer_loss
        scalars = {"quantizer": output.quantizer_loss, **reconstruction.terms, **output.stats}
        if output.prefix_images is not None:
            scalars["prefix"] = self.loss(output.prefix_images, batch.images).total
            total = total + self.config.prefix_weight * scalars["prefix"]
        if self.config.alignment is not None:
            vf_loss = torch.stack(list(aligned.values())).sum()
            vf_weight = self._weight(
                self.config.alignment,
                reconstruction.total,
                vf_loss,
                self.image_tokenizer.encoder.last_weight,
            )
            total = total + vf_weight * vf_loss
            scalars |= {**aligned, "vf_weight": vf_weight}
        if self.adversary is not None and self.adversary.is_active(step):
            g_loss = self.adversary.generator_loss(batch, output.images)
            g_weight = self._weight(
                self.adversary.config,
                reconstruction.total,
                g_loss,
                self.image_tokenizer.decoder.last_weight,
            )
            total = total + g_weight * g_loss
            scalars |= {"g_loss": g_loss, "g_weight": g_weight}
        return output.images.detach(), {"loss": total, **scalars}

    def _weight(
        self,
        config: AlignmentConfig | AdversaryConfig,
        reference: Tensor,
        other: Tensor,
        parameter: Tensor,
    ) -> Tensor:
        """The weight of `other`, relative to the gradients at `parameter` where it is adaptive."""
        weight = torch.tensor(config.weight, device=other.device)
        if not config.adaptive:
            return weight
        reduce_mean = self.image_tokenizer.pyramid.quantizer.reduce_mean
        return weight * adaptive_weight(reference, other, parameter, reduce_mean=reduce_mean)

    def _num_kept(self, batch: Batch) -> Tensor | None:
        """Scale dropout: all S scales, or, with its probability, 1 to S - 1 of them."""
        if not self.config.scale_dropout:
            return None
        count = self.image_tokenizer.spec.num_scales
        draws = uniform_from_keys(batch.keys, SCALE_DROPOUT_STREAM, (2,))  # (B, 2)
        fewer = 1 + (draws[:, 1] * (count - 1)).long()
        return torch.where(draws[:, 0] < self.config.scale_dropout, fewer, count)

    def _prefix(self, batch: Batch) -> Tensor | None:
        """1 to S - 1 scales for each image's second decode."""
        if not self.config.prefix_weight:
            return None
        draws = uniform_from_keys(batch.keys, PREFIX_STREAM)  # (B,)
        return 1 + (draws * (self.image_tokenizer.spec.num_scales - 1)).long()

    def _check_processes(self) -> None:
        config, accelerator = self.config, self.accelerator
        is_sharded = accelerator.distributed_type == DistributedType.FSDP
        revives = getattr(self.image_tokenizer.pyramid.quantizer, "revival", None) is not None
        if is_sharded and (config.adversary or config.has_adaptive_weight or revives):
            raise ValueError(
                "FSDP cannot train with an adversary, an adaptive weight or revival: use DDP, "
                f"got distributed_type {accelerator.distributed_type.value}"
            )
        if self.adversary is None:
            return
        parts = accelerator.num_processes * config.loop.accumulation
        size, group = config.loop.batch_size // parts, self.adversary.discriminator.group_size
        if size % group:
            raise ValueError(
                f"loop.batch_size {config.loop.batch_size} is {size} images for each of "
                f"{accelerator.num_processes} processes x loop.accumulation "
                f"{config.loop.accumulation}, which adversary.discriminator.group_size {group} "
                "must divide"
            )

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
        reduce_mean = self.image_tokenizer.pyramid.quantizer.reduce_mean
        window = self.window.state_dict(reduce_mean, self.accelerator.num_processes)
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {**parts, "window": window}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        if self.accelerator.is_main_process:  # the counts are all processes'
            self.window.load_state_dict(state.get("window", {}), self.accelerator.device)

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "tokenizer": self.image_tokenizer,
            "ema": self.ema,
            "optimizer": self.optimizer,
        }
        if self.alignment is not None:
            parts["alignment"] = self.alignment
        if self.adversary is not None:
            parts["adversary"] = self.adversary
        return parts

    def save_pretrained(self, folder: Path) -> None:
        """Writes `tokenizer/` with the averaged weights."""
        self.ema.average.save_pretrained(folder / ImageTokenizer.folder_name)

    @torch.no_grad()
    def _reconstruct(self, count: int) -> tuple[Tensor, Tensor, TokenPyramid]:
        """`count` evenly spaced held-out images and their reconstructions, uint8 (N, 3, H, W)."""
        size = len(self.eval_data)
        originals = self.eval_data.images_uint8(spread(size, min(count, size)))
        outputs, indices = [], []
        for chunk in originals.split(64):
            with self.accelerator.autocast():
                tokens = self.ema.average.encode(from_uint8(chunk).to(self.accelerator.device))
                outputs.append(to_uint8(self.ema.average.decode(tokens)).cpu())
            indices.append(tokens.indices)
        return originals, torch.cat(outputs), TokenPyramid(torch.cat(indices), tokens.spec)

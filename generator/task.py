"""Stage 2: trains a `NextScaleGenerator` on the tokens of a frozen tokenizer.

The algorithm only; `common.training.loop.fit` owns the loop. Tokens are computed online from
augmented images, or come with the batches from a `TokenCache`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from lambda24.common.data.batches import Batch, uniform_from_keys
from lambda24.common.data.dataset import ImageDataset
from lambda24.common.images import from_uint8
from lambda24.common.metrics.reference import spread
from lambda24.common.optim.build import build_any_optimizer
from lambda24.common.optim.ema import EMA
from lambda24.common.optim.gradients import gradient_step
from lambda24.common.optim.schedule import warn_of_long_warmup
from lambda24.common.training.loop import Task
from lambda24.generator.blocks import Block
from lambda24.generator.heads import TokenLoss
from lambda24.generator.model import NextScaleGenerator
from lambda24.generator.objective import accuracies, check_limits, scale_weights
from lambda24.generator.phases import teacher_forcing_inputs
from lambda24.generator.self_correction import SelfCorrection
from lambda24.generator.settings import GeneratorTrainingConfig, check_classes, check_tokenizer
from lambda24.tokenizer import ImageTokenizer, TokenPyramid

CLASS_DROPOUT_STREAM = 101
"""Names the random stream of class dropout among a sample's streams (`uniform_from_keys`)."""

MAX_ACCURACY_TOKENS = 512
"""Tokens of each scale that an evaluation's accuracy is taken over: it looks at all codes."""


class TeacherForcing(nn.Module):
    """Trunk and head in one forward pass, so that DDP sees every parameter used inside it."""

    _no_split_modules: ClassVar[list[str]] = [Block.__name__]  # what FSDP gathers at a time

    def __init__(
        self, generator: NextScaleGenerator, *, checkpoint_activations: bool = False
    ) -> None:
        super().__init__()
        self.generator = generator
        self.checkpoint_activations = checkpoint_activations

    def forward(
        self, inputs: Tensor, labels: Tensor, indices: Tensor, *, with_uniform: bool = False
    ) -> TokenLoss:
        recompute = self.checkpoint_activations
        hidden = self.generator(inputs, labels, checkpoint_activations=recompute)  # (B, L, W)
        return self.generator.head.loss(hidden, indices, with_uniform=with_uniform)


class GeneratorTask(Task):
    """Next-scale prediction with teacher forcing; the best weights are those of the lowest `nll`.

    Args:
        config: the run.
        image_tokenizer: frozen stage-1 model.
        eval_data: held-out images for the evaluation loss.
        train_data: training images, which an evaluation scores in the same way beside them.
        draw: makes the sample grid of a generator (sampling lies above this package).

    Raises:
        ValueError: the data's classes or image size are not those of the model or tokenizer.
    """

    compared = ("tokenizer", "tokens")  # by `check_same_tokenizer` and `TokenCache.open`
    minimized = "nll"

    def __init__(
        self,
        config: GeneratorTrainingConfig,
        image_tokenizer: ImageTokenizer,
        eval_data: ImageDataset,
        train_data: ImageDataset,
        draw: Callable[[NextScaleGenerator], Image.Image] | None = None,
    ) -> None:
        check_classes(config, eval_data)
        check_tokenizer(config, image_tokenizer.config)
        self.config = config
        self.image_tokenizer = image_tokenizer.eval().requires_grad_(False)
        self.eval_data, self.train_data = eval_data, train_data
        self.draw = draw
        spec = image_tokenizer.spec
        torch.manual_seed(config.seed)
        self.generator = NextScaleGenerator(config.model, spec, eval_data.label_names)
        self.modules = {"generator": self.generator}
        self.ema = EMA(self.generator, config.ema_decay)
        self.optimizer = build_any_optimizer(self.generator, config.optimizer, seed=config.seed)
        self.weights = scale_weights(config.scale_weights, spec)  # (L,)
        self.self_correction: SelfCorrection | None = None
        if config.self_correction is not None:
            self.self_correction = SelfCorrection(config.self_correction, image_tokenizer)

    def prepare(self, accelerator: Accelerator) -> None:
        warn_of_long_warmup(self.config.optimizer, self.config.loop.steps)
        self.accelerator = accelerator
        self.image_tokenizer.to(accelerator.device)
        self.weights = self.weights.to(accelerator.device)
        self.ema.average.to(accelerator.device)
        if self.config.compile:
            self.generator.compile()
        recompute = self.config.checkpoint_activations
        model = TeacherForcing(self.generator, checkpoint_activations=recompute)
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
        if self.config.guard.abs_log_z is not None:
            # All processes stop, or none: one alone would leave the others waiting.
            scalars["abs_log_z"] = self.accelerator.reduce(scalars["abs_log_z"], "mean")
        check_limits(self.config.guard, scalars)
        self.ema.update(step)
        return scalars

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """Scores of the averaged weights on held-out images, over all scales and for each.

        `_losses`, and the accuracy of the most likely token on the first tokens of each scale. Of a
        head that also gives mass to what is no code: `code_nll`, the nats per token among the
        codes, and `code_mass`, the mean probability of being a code. `train_nll` and its scales are
        of as many training images (or all there are) under the same conditions: without dropout of
        labels, crops, moves or flips; so they lie below the `nll` that the step lines average.
        """
        right: list[list[Tensor]] = [[] for _ in self.generator.spec.scales]
        count = min(self.config.num_eval_images, len(self.eval_data))
        held_out = self._score(self.eval_data, count, right)
        train = self._score(self.train_data, min(count, len(self.train_data)), None)
        scores = {"nll": held_out.pop("nll"), "train_nll": train.pop("nll"), **held_out}
        scores |= {f"train_{name}": v for name, v in train.items() if name.startswith("nll_")}
        return scores | accuracies(right, self.generator.spec)

    def _score(
        self, data: ImageDataset, count: int, right: list[list[Tensor]] | None
    ) -> dict[str, float]:
        """Means over `count` images that are spread evenly over those of `data`.

        They may be sorted by class. `right` collects what `_compare` finds.
        """
        totals: dict[str, float] = {}
        model = TeacherForcing(self.ema.average)
        for chunk in torch.tensor(spread(len(data), count)).split(64):
            images = from_uint8(data.images_uint8(chunk.tolist()))
            labels = data.labels[chunk].to(self.accelerator.device)
            tokens, inputs = self._tokenize(images.to(self.accelerator.device))
            scores = self._losses(model, inputs, labels, tokens)
            if right is not None and not self.generator.head.normalized_over_codes:
                scores |= self._code_scores(inputs, labels, tokens)
            for name, value in scores.items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(chunk) / count
            if right and any(sum(map(len, found)) < MAX_ACCURACY_TOKENS for found in right):
                self._compare(inputs, labels, tokens, right)
        return totals

    def _code_scores(
        self, inputs: Tensor, labels: Tensor, tokens: TokenPyramid
    ) -> dict[str, Tensor]:
        model = self.ema.average
        with self.accelerator.autocast():
            hidden = model(inputs, labels)  # (B, L, W)
            among_all = model.head.loss(hidden, tokens.indices)
            among_codes = model.head.code_loss(hidden, tokens.indices)
        mass = (among_codes.log_z - among_all.log_z).exp()
        return {"code_nll": among_codes.nll.mean(), "code_mass": mass.mean()}

    def _compare(
        self, inputs: Tensor, labels: Tensor, tokens: TokenPyramid, right: list[list[Tensor]]
    ) -> None:
        """Adds to each scale whether its tokens are the most likely ones, while any are wanted."""
        model = self.ema.average
        with self.accelerator.autocast():
            hidden = model(inputs, labels)  # (B, L, W)
        for scale, found in enumerate(right):
            rows = hidden[:, tokens.spec.scale_slice(scale)].flatten(0, 1)
            wanted = max(0, MAX_ACCURACY_TOKENS - sum(map(len, found)))
            if wanted:
                own = tokens.scale(scale).flatten(0, 1)[:wanted]
                found.append(model.head.is_best(rows[:wanted], own))

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

    def save_pretrained(self, folder: Path) -> None:
        """Writes a pipeline folder: `generator/` with the averaged weights, and `tokenizer/`."""
        self.ema.average.save_pretrained(folder / NextScaleGenerator.folder_name)
        self.image_tokenizer.save_pretrained(folder / ImageTokenizer.folder_name)

    def _inputs(self, tokens: TokenPyramid) -> Tensor:
        return teacher_forcing_inputs(self.image_tokenizer, tokens, self.config.model.phases)

    def _tokenize(self, images: Tensor) -> tuple[TokenPyramid, Tensor]:
        with self.accelerator.autocast():
            tokens = self.image_tokenizer.encode(images)
        return tokens, self._inputs(tokens)

    def _batch_losses(self, batch: Batch) -> dict[str, Tensor]:
        if batch.tokens is not None:
            tokens = TokenPyramid(batch.tokens, self.generator.spec)
            inputs = self._inputs(tokens)
        elif self.self_correction is not None:
            with self.accelerator.autocast():
                tokens, history = self.self_correction.encode(batch)
            inputs = self._inputs(history)
        else:
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
        """`loss` with gradient; mean nats per token and mean |log Z|, over all scales and each.

        |log Z| is the root of the Z-loss: of a token of several factors, the norm of theirs.
        """
        smoothing = self.config.label_smoothing
        with self.accelerator.autocast():
            losses = model(inputs, labels, tokens.indices, with_uniform=smoothing > 0)
        penalized = losses.smoothed(smoothing) + self.config.z_loss_weight * losses.z_loss  # (B, L)
        abs_log_z = losses.z_loss.detach().sqrt()
        found = {
            "loss": (penalized * self.weights).mean(),
            "nll": losses.nll.mean(),
            "abs_log_z": abs_log_z.mean(),
        }
        for k in range(tokens.spec.num_scales):
            found[f"nll_{k}"] = losses.nll[:, tokens.spec.scale_slice(k)].mean()
            found[f"abs_log_z_{k}"] = abs_log_z[:, tokens.spec.scale_slice(k)].mean()
        return found

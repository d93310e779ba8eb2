"""Pipeline: a tokenizer and a generator that belong together, from class names to PIL images.

A pipeline folder holds `tokenizer/`, `generator/` and, optionally, `sampling.json` with the default
sampling settings, `training.json` with config and metrics of the training, and a model card. A
stage-2 run folder is a pipeline folder.

Images are computed in groups of exactly `batch_size`, the last one filled up, because matrix
products of other sizes round differently.
"""

from __future__ import annotations

import difflib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lambda24.common.config import to_dict
from lambda24.common.files import atomic_folder, replace_text
from lambda24.common.images import as_rgb, from_pil, from_uint8, to_pil
from lambda24.common.pretrained import WEIGHTS_FILE, download_folder, state_digest, store_as
from lambda24.generator.model import NextScaleGenerator
from lambda24.sampling.compiled import compiled, is_compiled
from lambda24.sampling.editing import edit, white_area
from lambda24.sampling.generate import Generated, check_specs, generate
from lambda24.sampling.model_card import TRAINING_FILE, model_card, read_training
from lambda24.sampling.seeds import as_integer, check_seeds
from lambda24.sampling.settings import (
    SETTINGS_FILE,
    SamplingConfig,
    override,
    read_settings,
    save_settings,
)
from lambda24.tokenizer.model import ImageTokenizer

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"

# Larger groups are faster an image (10-40 % on a CPU), but a single image costs a whole group.
GROUP = 4


class Pipeline:
    """Generates images of classes.

    Args:
        image_tokenizer: decodes tokens; put in eval mode.
        generator: predicts tokens; put in eval mode.
        sampling: settings of calls that give none.
        training: `config` and `metrics` of the training, for the model card.

    Raises:
        ValueError: a tokenizer and a generator made for different pyramids.
    """

    def __init__(
        self,
        image_tokenizer: ImageTokenizer,
        generator: NextScaleGenerator,
        sampling: SamplingConfig | None = None,
        training: dict[str, Any] | None = None,
    ) -> None:
        check_specs(generator, image_tokenizer)
        self.image_tokenizer = image_tokenizer.eval()
        self.generator = generator.eval()
        self.sampling = sampling or SamplingConfig()
        self.training = training or {}
        self.dtype = torch.float32
        self._said: set[str] = set()

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> Pipeline:
        """Loads a pipeline folder, a packaged model, or a Hugging Face Hub id at a revision.

        Everything is on the CPU, in fp32.

        Args:
            source: a folder, "digits" or "cifar10" (unless a folder here is called so), or an id.

        Raises:
            ValueError: no such folder or Hub model, missing or damaged parts, parts of different
                pyramids, invalid sampling settings.
        """
        folder = Path(source)
        names = (ImageTokenizer.folder_name, NextScaleGenerator.folder_name)
        if not folder.is_dir():
            patterns = [SETTINGS_FILE, TRAINING_FILE, *(f"{name}/*" for name in names)]
            folder = Path(download_folder(str(source), patterns=patterns, revision=revision))
        for name in names:
            if not (folder / name).is_dir():
                raise ValueError(f"{folder} is not a pipeline folder: {name}/ is missing")
        image_tokenizer = ImageTokenizer.from_pretrained(folder / names[0])
        generator = NextScaleGenerator.from_pretrained(folder / names[1])
        return cls(image_tokenizer, generator, read_settings(folder), read_training(folder))

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Writes a pipeline folder, its weights rounded to `dtype`; loading makes them fp32 again.

        A new folder appears complete or not at all. In an existing one, such as a run folder, each
        file of the parts is replaced whole and everything else stays, a README.md too.
        """
        path = Path(folder)
        with atomic_folder(path) if not path.exists() else nullcontext(path) as target:
            self.image_tokenizer.save_pretrained(target / self.image_tokenizer.folder_name)
            self.generator.save_pretrained(target / self.generator.folder_name)
            if dtype != torch.float32:
                for model in (self.image_tokenizer, self.generator):
                    store_as(target / model.folder_name / WEIGHTS_FILE, dtype)
            save_settings(self.sampling, target)
            if self.training:
                text = json.dumps(self.training, indent=2)
                replace_text(target / TRAINING_FILE, text + "\n")
            if not (target / CARD_FILE).exists():
                replace_text(target / CARD_FILE, self.model_card())

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, **upload: Any) -> str:
        """Uploads the pipeline folder, model card and all; returns the commit's address.

        Args:
            repo_id: "user/name"; made if there is none.
            private: for a new one; None leaves it to the account's setting.
            **upload: of `HfApi.upload_folder`, such as `commit_message`, `revision`, `create_pr`.
        """
        api = HfApi()
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            commit = api.upload_folder(repo_id=repo, folder_path=folder, **upload)
        return str(commit.commit_url)

    def __repr__(self) -> str:
        generator, size = self.generator, self.image_tokenizer.config.image_size
        parameters = sum(parameter.numel() for parameter in generator.parameters())
        return (
            f"Pipeline({generator.num_classes} classes, {size} x {size} pixels, "
            f"{generator.spec.num_scales} scales, generator of {parameters:,} parameters, "
            f"{self.device})"
        )

    def model_card(self) -> str:
        """Markdown: architecture, classes, settings, and what is known of data and metrics."""
        size = self.image_tokenizer.config.image_size
        digest = self.digest() if self.training.get("metrics") else ""  # reads all weights
        return model_card(self.generator, size, to_dict(self.sampling), self.training, digest)

    def digest(self) -> str:
        """SHA-256 of the configs and weights of both models."""
        models = {"generator": self.generator, "tokenizer": self.image_tokenizer}
        configs = {name: model.config_dict() for name, model in models.items()}
        state = {
            f"{n}.{k}": v for n, model in models.items() for k, v in model.state_dict().items()
        }
        return state_digest(json.dumps(configs, sort_keys=True), state)

    def autocast(self) -> torch.autocast:
        """A context in which the models run in `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Pipeline:
        """Moves both models; `dtype` bfloat16 or float16 runs them under autocast.

        Weights, quantizer, heads and sampling stay in fp32 in any case.

        Raises:
            ValueError: another dtype.
        """
        if dtype is not None:
            if dtype not in (torch.float32, torch.bfloat16, torch.float16):
                raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
            self.dtype = dtype
        if device is not None:
            self.image_tokenizer.to(device)
            self.generator.to(device)
        return self

    def compile(self, backend: str = "inductor") -> Pipeline:
        """Goes on with a generator of compiled blocks; see `sampling.compiled`.

        The first images take the compiler's time. Rounding differs from that of eager blocks.
        """
        self.generator = compiled(self.generator, backend)
        return self

    @property
    def is_compiled(self) -> bool:
        return is_compiled(self.generator)

    @property
    def device(self) -> torch.device:
        return self.generator.device

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes in order; empty when the model was trained without."""
        return self.generator.label_names

    def label_index(self, label: int | str) -> int:
        """Class number of a name or number; `num_classes` itself is the null class.

        Raises:
            ValueError: unknown name (lists the closest), a number out of range or no integer.
        """
        if isinstance(label, str):
            if label in self.label_names:
                return self.label_names.index(label)
            close = difflib.get_close_matches(label, self.label_names, n=3, cutoff=0.5)
            hint = f"closest: {', '.join(close)}" if close else _known(self.label_names)
            raise ValueError(f"unknown class {label!r}; {hint}")
        number = as_integer(label, "labels")
        if any(name.isdecimal() and int(name) != i for i, name in enumerate(self.label_names)):
            self._say_once_that_numbers_are_indices()
        if not 0 <= number <= self.generator.num_classes:
            raise ValueError(
                f"labels must be in [0, {self.generator.num_classes}] "
                f"(the last is the null class), got {label}"
            )
        return number

    def _say_once_that_numbers_are_indices(self) -> None:
        self._warn_once(
            "class names of this model are numbers: labels that are integers count from 0, "
            f"0 is {self.label_names[0]!r}; give text for a name"
        )

    def _check_guidance(self, sampling: SamplingConfig) -> None:
        """Says once that the unconditional half of guidance was never trained."""
        dropout = (self.training.get("config") or {}).get("class_dropout")
        scales = [scale.guidance_scale for scale in sampling.resolve(self.generator.spec)]
        if dropout == 0 and any(scale != 1 for scale in scales):
            self._warn_once(
                f"guidance_scale is up to {max(scales):g}, but this model was trained with "
                "class_dropout 0: it never saw the null class that guidance compares with; use 1"
            )

    def _warn_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)

    def __call__(
        self,
        labels: Sequence[int | str],
        seeds: Sequence[int] | None = None,
        *,
        batch_size: int = GROUP,
        progress: bool = False,
        config: SamplingConfig | None = None,
        **overrides: Any,
    ) -> list[Image.Image]:
        """One image per label.

        Args:
            labels: class numbers or names.
            seeds: an integer in [0, 2^32) per image; 0, 1, 2, ... when left out. The same label,
                seed, settings and `batch_size` give the same image, bit for bit, whatever else is
                asked for.
            batch_size: images at a time; fewer cost as much.
            progress: shows a bar.
            config: sampling settings instead of the pipeline's own.
            **overrides: fields of `SamplingConfig` that replace those of `config`.

        Raises:
            ValueError: unknown labels, seeds out of range or of another number than the labels,
                labels or seeds that are no integers, invalid settings.
        """
        sampling = override(config or self.sampling, overrides)
        self._check_guidance(sampling)

        def draw(numbers: Tensor, chosen: list[int], positions: list[int]) -> Generated:
            return generate(self.generator, self.image_tokenizer, numbers, chosen, sampling)

        return self._run(draw, labels, seeds, batch_size, progress)

    def edit(
        self,
        images: Sequence[Image.Image],
        labels: Sequence[int | str],
        seeds: Sequence[int] | None = None,
        *,
        keep_scales: int = 0,
        mask: Image.Image | None = None,
        batch_size: int = GROUP,
        progress: bool = False,
        config: SamplingConfig | None = None,
        **overrides: Any,
    ) -> list[Image.Image]:
        """Draws part of each image anew as its label says; see `sampling.editing`.

        Args:
            images: of the model's size, one per label; `labels` and all the rest as in a call.
            keep_scales: the first so many scales are kept whole.
            mask: white where all the images are drawn anew; None draws everything.

        Raises:
            ValueError: images or mask of another size or number, and as in a call.
        """
        sampling = override(config or self.sampling, overrides)
        self._check_guidance(sampling)
        if len(images) != len(labels):
            raise ValueError(f"got {len(labels)} labels but {len(images)} images")
        side = self.image_tokenizer.config.image_size
        for image in (*images, *([] if mask is None else [mask])):
            if not isinstance(image, Image.Image):
                raise ValueError(f"images and mask must be PIL images, got {type(image).__name__}")
            if image.size != (side, side):
                raise ValueError(f"images and mask must be {side} x {side}, got {image.size}")
        keep_scales = as_integer(keep_scales, "keep_scales")
        area = None if mask is None else white_area(mask)

        def draw(numbers: Tensor, chosen: list[int], positions: list[int]) -> Generated:
            return edit(
                self.generator,
                self.image_tokenizer,
                from_uint8(from_pil([as_rgb(images[i]) for i in positions])),
                numbers,
                chosen,
                sampling,
                keep_scales=keep_scales,
                mask=area,
            )

        return self._run(draw, labels, seeds, batch_size, progress)

    def _run(
        self,
        draw: Callable[[Tensor, list[int], list[int]], Generated],
        labels: Sequence[int | str],
        seeds: Sequence[int] | None,
        batch_size: int,
        progress: bool,
    ) -> list[Image.Image]:
        """Calls `draw` with the class numbers, seeds and positions of each group."""
        if isinstance(labels, str | int):  # a text is a sequence of letters
            raise ValueError(f"labels must be a list of classes, got {labels!r}")
        if isinstance(seeds, int):
            raise ValueError(f"seeds must be a list of integers, got {seeds}")
        seeds = check_seeds(range(len(labels)) if seeds is None else seeds)
        if len(seeds) != len(labels):
            raise ValueError(f"got {len(labels)} labels but {len(seeds)} seeds")
        if as_integer(batch_size, "batch_size") < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        numbers = torch.tensor([self.label_index(label) for label in labels], dtype=torch.int64)
        images: list[Image.Image] = []
        with (
            self.autocast(),
            tqdm(total=len(labels), unit="image", disable=not progress) as bar,
        ):
            for group, count in _groups(len(labels), batch_size):
                generated = draw(numbers[group], [seeds[i] for i in group], group)
                images += to_pil(generated.images[:count])
                bar.update(count)
        return images


def _groups(count: int, size: int) -> Iterator[tuple[list[int], int]]:
    """Positions, `size` at a time, the last repeated to fill up; and how many of them are new."""
    for start in range(0, count, size):
        yield [min(i, count - 1) for i in range(start, start + size)], min(size, count - start)


def _known(names: Sequence[str]) -> str:
    if not names:
        return "this model has no class names, give numbers"
    shown = ", ".join(names[:20])
    return f"known: {shown}" + (f", ... ({len(names)} in all)" if len(names) > 20 else "")

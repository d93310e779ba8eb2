"""What the playground's page does: values of its fields in, values of its outputs out.

Pictures, texts and tables; it knows no web page. Whatever a user gets wrong is a ValueError.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from lambda24.common.config import to_dict
from lambda24.common.images import as_rgb
from lambda24.sampling.editing import kept_tokens, white_area
from lambda24.sampling.image_files import save_png
from lambda24.sampling.options import (
    class_name,
    file_name,
    parse_label,
    parse_seeds,
    parse_settings,
    schedule_text,
)
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.playground.growth import Growth, enlarged, grow, grow_edit, sheet
from lambda24.sampling.playground.reconstruction import reconstruct, tokens_text
from lambda24.sampling.playground.uploads import fit_square, open_upload, painted_mask
from lambda24.sampling.settings import SamplingConfig
from lambda24.tokenizer.tokens import TokenSpec

MAX_IMAGES = 64
MAX_FOLDERS = 64  # of finished images, a click each; older ones are deleted
CANVAS = 512  # least side of the picture that a mask is painted on
SETTINGS = ("guidance_scale", "temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class Fields:
    """How the form starts with a model: facts, classes as `class_choices`, settings as text."""

    facts: str
    classes: list[tuple[str, str]]
    settings: list[str]
    num_scales: int

    @classmethod
    def of(cls, pipeline: Pipeline) -> Fields:
        settings = [schedule_text(getattr(pipeline.sampling, name)) for name in SETTINGS]
        num_scales = pipeline.generator.spec.num_scales
        return cls(describe(pipeline), class_choices(pipeline), settings, num_scales)


class Actions:
    """What the page's buttons do: values of its fields in, values of its outputs out.

    Args:
        pipelines: by the names that the page shows.
        folder: where images for download are written.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline], folder: Path) -> None:
        self.pipelines = pipelines
        self.digests = {name: pipeline.digest() for name, pipeline in pipelines.items()}
        self.folder = folder
        self.kept: deque[Path] = deque()

    def generate(self, model: str, label: str, seeds: str, *settings: str) -> Iterator[list[Any]]:
        """Picture, status, steps of the first image, finished images."""
        pipeline = self.pipelines[model]
        number, chosen, config = _request(pipeline, label, seeds, settings)
        spec, steps = pipeline.generator.spec, []
        picture, images = None, []
        for growth in grow(pipeline, number, chosen, config):
            images, side = growth.images, spec.scales[growth.scale - 1]
            if len(images) == growth.growing:
                steps.append((images[0], f"{side} x {side}"))
            picture = sheet(images, len(chosen))
            yield [picture, _progress(growth, len(chosen), spec), steps, []]
        name = class_name(number, pipeline)
        saved = self._save(
            images, chosen, name, {"model": self.digests[model], "sampling": to_dict(config)}
        )
        yield [picture, f"{len(images)} of class {name}, done", steps, saved]

    def reconstruct(self, model: str, path: str | None) -> list[Any]:
        """Original and reconstruction, summary, table by scale, prefixes, token indices."""
        if path is None:
            return [[], "", [], [], ""]
        pipeline = self.pipelines[model]
        side = pipeline.image_tokenizer.config.image_size
        image = fit_square(open_upload(path), side)
        result = reconstruct(pipeline.image_tokenizer, image)
        last = result.prefixes[-1]
        summary = (
            f"**{last.tokens} tokens, {last.bits:,.0f} bits** (without entropy coding), "
            f"{last.bits / side**2:.3f} bits a pixel, **PSNR {last.psnr:.2f} dB**"
        )
        rows = [
            [f"{p.side} x {p.side}", p.tokens, round(p.bits), round(p.psnr, 2)]
            for p in result.prefixes
        ]
        prefixes = [
            (p.image, f"to {p.side} x {p.side}: {p.bits:,.0f} bits, {p.psnr:.1f} dB")
            for p in result.prefixes
        ]
        pair = [(image, "given, cut to size"), (last.image, "reconstruction")]
        return [pair, summary, rows, prefixes, tokens_text(result.tokens)]

    def canvas(self, model: str, path: str | None) -> dict[str, Any] | None:
        """The given image as the model sees it, enlarged to be painted on."""
        if path is None:
            return None
        side = self.pipelines[model].image_tokenizer.config.image_size
        picture = enlarged(fit_square(open_upload(path), side), CANVAS)
        return {"background": picture, "layers": [], "composite": None}

    def edit(
        self,
        model: str,
        path: str | None,
        painting: Mapping[str, Any] | None,
        mask_path: str | None,
        keep: float,
        label: str,
        seeds: str,
        *settings: str,
    ) -> Iterator[list[Any]]:
        """Status and images, growing ones first, then the finished ones."""
        pipeline = self.pipelines[model]
        number, chosen, config = _request(pipeline, label, seeds, settings)
        if path is None:
            raise ValueError("there is no image to edit: upload one first")
        image, side = open_upload(path), pipeline.image_tokenizer.config.image_size
        mask = painted_mask((painting or {}).get("layers") or [], side)
        if mask_path is not None:
            uploaded = open_upload(mask_path)
            if uploaded.size != image.size:
                raise ValueError(
                    f"the mask must have the size of the image {image.size}, got {uploaded.size}"
                )
            given = fit_square(uploaded, side).convert("L")
            mask = given if mask is None else ImageChops.lighter(mask, given)
        if mask is not None:
            _check_mask(mask, pipeline)
        images: list[Image.Image] = []
        for growth in grow_edit(
            pipeline,
            fit_square(image, side),
            number,
            chosen,
            config,
            keep_scales=int(keep),
            mask=mask,
        ):
            images = growth.images
            captions = [f"seed {seed}" for seed in chosen[: len(images)]]
            status = _progress(growth, len(chosen), pipeline.generator.spec)
            yield [status, list(zip(images, captions, strict=True))]
        name = class_name(number, pipeline)
        how = {
            "model": self.digests[model],
            "keep_scales": int(keep),
            "sampling": to_dict(config),
        }
        area = "everything" if mask is None else f"{_share(mask):.0%} of the pixels"
        status = f"kept the first {int(keep)} scales, then {area} drawn anew as {name}"
        yield [status, self._save(images, chosen, name, how)]

    def _save(
        self, images: Sequence[Image.Image], seeds: Sequence[int], name: str, how: dict[str, Any]
    ) -> list[tuple[str, str]]:
        """Writes a PNG for each seed, which says what it was made with; paths and captions."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        self.kept.append(folder)
        while len(self.kept) > MAX_FOLDERS:
            shutil.rmtree(self.kept.popleft(), ignore_errors=True)
        saved = []
        for image, seed in zip(images, seeds, strict=True):
            path = folder / f"{file_name(name)}_seed{seed}.png"
            save_png(image, path, {**how, "label": name, "seed": seed})
            saved.append((str(path), f"seed {seed}"))
        return saved


def class_choices(pipeline: Pipeline) -> list[tuple[str, str]]:
    """What to show and what `parse_label` takes, for each class; classes of one name by number."""
    names = pipeline.label_names
    if not names:
        return [(str(k), str(k)) for k in range(pipeline.generator.num_classes)]
    counts = Counter(names)
    return [
        (name, name) if counts[name] == 1 and name == name.strip() else (f"{name} ({k})", f"#{k}")
        for k, name in enumerate(names)
    ]


def describe(pipeline: Pipeline) -> str:
    """One line: size, scales, tokens, codes, bits, classes."""
    spec = pipeline.generator.spec
    side = pipeline.image_tokenizer.config.image_size
    codes = " x ".join(f"{size:,}" for size in spec.codebook_sizes)
    return (
        f"{side} x {side} pixels · {spec.num_scales} scales {', '.join(map(str, spec.scales))} · "
        f"{spec.length} tokens of {codes} codes · {spec.bits_per_image:,.0f} bits an image · "
        f"{pipeline.generator.num_classes} classes"
    )


def _request(
    pipeline: Pipeline, label: str | None, seeds: str | None, settings: Sequence[str | None]
) -> tuple[int, list[int], SamplingConfig]:
    """What the form's fields say; a cleared one may hold None."""
    number = parse_label(label or "", pipeline)
    texts = {name: text or "" for name, text in zip(SETTINGS, settings, strict=True)}
    return number, parse_seeds(seeds or "", MAX_IMAGES), parse_settings(texts, pipeline)


def _progress(growth: Growth, total: int, spec: TokenSpec) -> str:
    """Which images have reached which scale."""
    last, side = len(growth.images), spec.scales[growth.scale - 1]
    first = last - growth.growing + 1
    which = f"{first}" if first == last else f"{first} to {last}"
    scale = f"scale {growth.scale} of {spec.num_scales} ({side} x {side} tokens)"
    return f"image {which} of {total}: {scale}"


def _check_mask(mask: Image.Image, pipeline: Pipeline) -> None:
    """Refuses a mask by which the image would come back as it was, only reconstructed."""
    spec = pipeline.generator.spec
    area = white_area(mask)
    if kept_tokens(spec, 0, area, (1, *area.shape)).all():
        side = spec.scales[-1]
        raise ValueError(
            "the mask leaves nothing to draw anew: white must cover at least half of one of the "
            f"{side} x {side} cells of the image, and covers {_share(mask):.1%} of the pixels"
        )


def _share(mask: Image.Image) -> float:
    """Part of the pixels that are white."""
    white: int = sum(as_rgb(mask).convert("L").histogram()[128:])
    return white / (mask.width * mask.height)

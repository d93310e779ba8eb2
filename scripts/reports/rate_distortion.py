"""Rate and distortion of images under our codec and under Pillow's, in one table and one plot.

Bits are those of files as they are written, headers included.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from lambda24.common.images import as_rgb
from lambda24.common.metrics.pairs import MS_SSIM_SIDE, ms_ssim, psnr
from lambda24.sampling.image_codec import ImageCodec
from lambda24.scripts.reports.plots import new_figure, ordered_colors
from lambda24.tokenizer.codec.container import Mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUALITIES = (1, 5, 10, 20, 30, 50, 70, 85, 95)
JPEG_2000_RATES = (400, 200, 100, 60, 40, 25, 16, 10, 6)


@dataclass(frozen=True)
class RatePoint:
    """One codec at one setting, over all images.

    Args:
        bits_per_pixel: of all files together over all pixels together.
        payload_bits_per_pixel: without our container; equal to `bits_per_pixel` for others.
        psnr: mean over images, dB.
        ms_ssim: mean over images; None where images are too small.
        images_per_second: of coding and decoding together, one thread or more as torch has them.
    """

    codec: str
    setting: str
    bits_per_pixel: float
    payload_bits_per_pixel: float
    psnr: float
    ms_ssim: float | None
    images_per_second: float


def own_points(
    codec: ImageCodec, images: Sequence[Image.Image], modes: Sequence[Mode], **options: Any
) -> Iterator[RatePoint]:
    """Our modes, all images in one file; `options` go to `ImageCodec.encode` of mode "model"."""
    for mode in modes:
        start = time.perf_counter()
        data = codec.encode(images, mode, **(options if mode == "model" else {}))
        decoded = codec.decode(data)
        seconds = time.perf_counter() - start
        container = codec.container_bytes(data)
        yield _point("lambda24", mode, images, decoded, len(data), seconds, container)


def other_points(images: Sequence[Image.Image]) -> Iterator[RatePoint]:
    """JPEG, WebP, JPEG 2000 and AVIF, as far as this Pillow has them; one file an image."""
    for name, settings in _other_codecs().items():
        for shown, write in settings:
            start, size, decoded = time.perf_counter(), 0, []
            for image in images:
                buffer = io.BytesIO()
                write(image, buffer)
                size += buffer.tell()
                with Image.open(buffer) as file:
                    decoded.append(file.convert("RGB"))
            yield _point(name, shown, images, decoded, size, time.perf_counter() - start, 0)


Writer = Callable[[Image.Image, io.BytesIO], None]


def _other_codecs() -> dict[str, list[tuple[str, Writer]]]:
    found = {"JPEG": [_by_quality("JPEG", q) for q in QUALITIES]}
    if features.check("webp"):
        found["WebP"] = [_by_quality("WEBP", q) for q in QUALITIES]
    if features.check("jpg_2000"):
        found["JPEG 2000"] = [_by_rate(rate) for rate in JPEG_2000_RATES]
    if features.check("avif"):
        found["AVIF"] = [_by_quality("AVIF", q) for q in QUALITIES]
    return found


def _by_quality(kind: str, quality: int) -> tuple[str, Writer]:
    def write(image: Image.Image, buffer: io.BytesIO) -> None:
        image.save(buffer, kind, quality=quality)

    return f"quality {quality}", write


def _by_rate(rate: int) -> tuple[str, Writer]:
    def write(image: Image.Image, buffer: io.BytesIO) -> None:
        image.save(buffer, "JPEG2000", quality_mode="rates", quality_layers=[rate])

    return f"rate {rate}", write


def _point(
    codec: str,
    setting: str,
    images: Sequence[Image.Image],
    decoded: Sequence[Image.Image],
    num_bytes: int,
    seconds: float,
    container: int,
) -> RatePoint:
    pixels = sum(image.width * image.height for image in images)
    pairs = [(_tensor(a), _tensor(b)) for a, b in zip(decoded, images, strict=True)]
    sides = min(min(image.size) for image in images)
    similarity = None
    if sides >= MS_SSIM_SIDE:
        similarity = float(np.mean([float(ms_ssim(a, b)) for a, b in pairs]))
    return RatePoint(
        codec=codec,
        setting=setting,
        bits_per_pixel=8 * num_bytes / pixels,
        payload_bits_per_pixel=8 * (num_bytes - container) / pixels,
        psnr=float(np.mean([float(psnr(a, b)) for a, b in pairs])),
        ms_ssim=similarity,
        images_per_second=len(images) / seconds,
    )


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(as_rgb(image))).permute(2, 0, 1)[None]


def write_csv(points: Sequence[RatePoint], path: Path) -> None:
    """One line a point."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(RatePoint)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)


def table(points: Sequence[RatePoint]) -> str:
    """Markdown, in the order of `points`."""
    lines = [
        "| codec | setting | bits a pixel | without container | PSNR, dB | MS-SSIM | images/s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for point in points:
        similarity = "-" if point.ms_ssim is None else f"{point.ms_ssim:.4f}"
        lines.append(
            f"| {point.codec} | {point.setting} | {point.bits_per_pixel:.4f} | "
            f"{point.payload_bits_per_pixel:.4f} | {point.psnr:.2f} | {similarity} | "
            f"{point.images_per_second:.3g} |"
        )
    return "\n".join(lines)


def draw(points: Sequence[RatePoint]) -> Figure:
    """PSNR and, where there is one, MS-SSIM over bits a pixel; our modes are black dots."""
    names = list(dict.fromkeys(point.codec for point in points if point.codec != "lambda24"))
    has_similarity = all(point.ms_ssim is not None for point in points)
    figure, axes = new_figure(1 + has_similarity, 2)
    for axis, value in zip(axes, ("psnr", "ms_ssim"), strict=False):
        for shade, name in zip(ordered_colors(len(names)), names, strict=True):
            own = [point for point in points if point.codec == name]
            curve = sorted((point.bits_per_pixel, getattr(point, value)) for point in own)
            axis.plot(*zip(*curve, strict=True), marker=".", color=shade, label=name)
        for point in points:
            if point.codec == "lambda24":
                place = (point.bits_per_pixel, getattr(point, value))
                axis.plot(*place, "o", color="black")
                axis.annotate(point.setting, place, textcoords="offset points", xytext=(5, -9))
        axis.set_xscale("log")
        axis.set_xlabel("bits a pixel")
        axis.set_ylabel({"psnr": "PSNR, dB", "ms_ssim": "MS-SSIM"}[value])
    axes[0].legend()
    return figure

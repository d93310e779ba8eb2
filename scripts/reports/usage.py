"""Histograms of code usage: codes and entropy of each scale, and how often single codes occur."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lambda24.common.images import from_uint8
from lambda24.common.metrics.reference import ImageSource, SubsetImages, image_batches, spread
from lambda24.scripts.reports.plots import color, legend_above, log_axis, new_figure, ordered_colors
from lambda24.tokenizer.model import ImageTokenizer
from lambda24.tokenizer.tokens import TokenPyramid
from lambda24.tokenizer.usage import CodeUsage, code_usage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ScaleUsage:
    """Codes of one scale in a set of images, summed over a token's codebooks.

    `most_codes` and `most_bits` bound what so many tokens can show of these codebooks;
    `occurrences` has, for each power of two 2^i, the number of codes that occur 2^i to 2^(i+1) - 1
    times.
    """

    side: int
    num_tokens: int
    used: CodeUsage
    most_codes: int
    most_bits: float
    occurrences: tuple[int, ...]


@torch.no_grad()
def encode_images(
    image_tokenizer: ImageTokenizer, source: ImageSource, count: int, batch_size: int = 64
) -> TokenPyramid:
    """Tokens of `count` images, spread evenly over the source; of all, where it has fewer."""
    chosen = SubsetImages(source, spread(len(source), min(count, len(source))))
    parts = [
        image_tokenizer.encode(from_uint8(images).to(image_tokenizer.device)).indices.cpu()
        for images in image_batches(chosen, batch_size)
    ]
    return TokenPyramid(torch.cat(parts), image_tokenizer.spec)


def scale_usage(tokens: TokenPyramid, scale: int) -> ScaleUsage:
    """Usage of the codebooks at one scale."""
    indices = tokens.scale(scale)  # (N, n_k, G)
    sizes, num_tokens = tokens.spec.codebook_sizes, indices[..., 0].numel()
    bounds = [min(num_tokens, size) for size in sizes]
    return ScaleUsage(
        side=tokens.spec.scales[scale],
        num_tokens=num_tokens,
        used=code_usage(indices, sizes),
        most_codes=sum(bounds),
        most_bits=sum(math.log2(bound) for bound in bounds),
        occurrences=_occurrences(indices),
    )


def _occurrences(indices: Tensor) -> tuple[int, ...]:
    columns = indices.flatten(0, -2).unbind(-1)
    counts = torch.cat([column.unique(return_counts=True)[1] for column in columns])
    return tuple(torch.bincount(counts.double().log2().floor().long()).tolist())


def draw_usage(tokens: TokenPyramid) -> Figure:
    """Three panels: codes used and entropy by scale, each with its bound, and occurrences."""
    from matplotlib.ticker import StrMethodFormatter

    scales = [scale_usage(tokens, k) for k in range(tokens.spec.num_scales)]
    figure, (codes, entropy, histogram) = new_figure(3, columns=3)
    places = range(len(scales))
    shades = ordered_colors(len(scales))
    bound = {"color": color(1), "marker": "_", "markersize": 22, "linestyle": "none"}
    codes.bar(places, [scale.used.codes_used for scale in scales], color=shades)
    codes.plot(places, [scale.most_codes for scale in scales], **bound)  # type: ignore[arg-type]
    log_axis(codes)
    codes.set_ylim(bottom=1)
    codes.set_ylabel("different codes")
    codes.set_title("codes used", fontsize="medium")
    entropy.bar(places, [scale.used.entropy_bits for scale in scales], color=shades)
    entropy.plot(places, [scale.most_bits for scale in scales], **bound)  # type: ignore[arg-type]
    entropy.set_ylabel("bits per token")
    entropy.set_title("entropy of codes", fontsize="medium")
    for axes in (codes, entropy):
        axes.set_xticks(places, [f"{scale.side}x{scale.side}" for scale in scales])
        axes.set_xlabel("scale")
        axes.grid(axis="x", visible=False)
    for scale, shade in zip(scales, shades, strict=True):
        bins = range(len(scale.occurrences))
        histogram.plot(bins, scale.occurrences, "o-", color=shade, markersize=4, linewidth=1.3)
    num_bins = max(len(scale.occurrences) for scale in scales)
    names = ["1", *(f"{2**i}-{2 ** (i + 1) - 1}" for i in range(1, num_bins))]
    histogram.set_xticks(range(num_bins), names, rotation=30 if num_bins > 6 else 0)
    histogram.set_yscale("symlog", linthresh=1)
    histogram.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    histogram.margins(x=0.06)
    histogram.set_ylim(0, 3 * max(max(scale.occurrences) for scale in scales))
    histogram.set_xlabel("occurrences of a code")
    histogram.set_ylabel("number of codes")
    histogram.set_title("how often codes occur", fontsize="medium")
    bits = math.log2(max(tokens.spec.codebook_sizes))
    entries: list[tuple[str, dict[str, object]]] = [
        (
            f"scale {k} ({scale.side}x{scale.side}): {scale.num_tokens:,} tokens",
            {"color": shade, "linewidth": 3},
        )
        for k, (scale, shade) in enumerate(zip(scales, shades, strict=True))
    ]
    name = f"bound by the tokens and the codebook ({bits:.1f} bits)"
    legend_above(figure, [*entries, (name, {**bound, "markersize": 14})])
    return figure

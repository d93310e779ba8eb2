"""Editing: part of a given image is kept, the rest is drawn anew for a class.

The next-scale loop runs as always; after each scale, tokens of kept cells are replaced by the
image's own. These are quantized against the sum so far, drawn tokens included, so that finer scales
of the kept part make up for coarser ones that were drawn. Nothing drawn, nothing changes: then they
are the image's tokens.

Keeping the first scales and giving another class is VAR's class swap; keeping what lies outside a
mask its in-painting, what lies inside its out-painting (arXiv 2404.02905, section 5.4).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from lambda24.common.images import as_rgb, from_pil
from lambda24.generator.model import NextScaleGenerator
from lambda24.sampling.generate import Generated, Revise, generate
from lambda24.sampling.settings import SamplingConfig
from lambda24.tokenizer.model import ImageTokenizer
from lambda24.tokenizer.pyramid.multiscale import PyramidState
from lambda24.tokenizer.tokens import TokenSpec


def edit(
    generator: NextScaleGenerator,
    image_tokenizer: ImageTokenizer,
    images: Tensor,
    labels: Tensor,
    seeds: Sequence[int] | Tensor,
    config: SamplingConfig | None = None,
    *,
    keep_scales: int = 0,
    mask: Tensor | None = None,
) -> Generated:
    """Generates one image per label and seed that keeps part of the given one.

    Args:
        generator: see `generate`, as are `labels`, `seeds` and `config`.
        images: (B, 3, H, W) in [-1, 1].
        keep_scales: the first so many scales are kept whole.
        mask: (B, H, W) or (H, W) bool, True where the image is drawn anew; see `kept_tokens`.
            None draws all of it.

    Raises:
        ValueError: another number of images than labels or of another size, a mask of another size
            or type, `keep_scales` outside [0, S], and what `generate` refuses.
    """
    if len(images) != len(labels):
        raise ValueError(f"got {len(labels)} labels but {len(images)} images")
    revise = keeping(image_tokenizer, images, keep_scales=keep_scales, mask=mask)
    return generate(generator, image_tokenizer, labels, seeds, config, revise=revise)


def keeping(
    image_tokenizer: ImageTokenizer,
    images: Tensor,
    *,
    keep_scales: int = 0,
    mask: Tensor | None = None,
) -> Revise:
    """What puts the kept tokens of `images` in place of drawn ones, for `generate`; see `edit`."""
    spec, device = image_tokenizer.spec, image_tokenizer.device
    side = image_tokenizer.config.image_size
    kept = kept_tokens(spec, keep_scales, mask, (len(images), side, side)).to(device)
    with torch.inference_mode():
        target = image_tokenizer.normalized_latent(images.to(device))

    def revise(state: PyramidState, drawn: Tensor) -> Tensor:
        own = image_tokenizer.pyramid.encode_next(target, state)
        return torch.where(kept[:, spec.scale_slice(state.scale), None], own, drawn)

    return revise


def white_area(mask: Image.Image) -> Tensor:
    """Where a picture is white, bool (H, W): what is drawn anew."""
    return from_pil([as_rgb(mask)])[0, 0] > 127


def kept_tokens(
    spec: TokenSpec, keep_scales: int, mask: Tensor | None, shape: tuple[int, int, int]
) -> Tensor:
    """Which tokens of each image are its own, bool (B, L).

    Beyond the first `keep_scales` scales a token is kept when more than half of the pixels that its
    cell touches are: the single token of a 1 x 1 scale belongs to the image unless half of it or
    more is drawn anew.

    Args:
        shape: (B, H, W) of the images.

    Raises:
        ValueError: see `edit`.
    """
    if not 0 <= keep_scales <= spec.num_scales:
        raise ValueError(f"keep_scales must be in [0, {spec.num_scales}], got {keep_scales}")
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool)
    if mask.dtype != torch.bool or tuple(mask.shape) not in (shape, shape[1:]):
        raise ValueError(
            f"mask must be bool {shape} or {shape[1:]}, the size of the images, "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    pixels = (~mask).double().expand(shape)[:, None]
    scales = [
        rearrange(F.adaptive_avg_pool2d(pixels, side), "b 1 h w -> b (h w)") > 0.5
        for side in spec.scales
    ]
    kept = torch.cat(scales, dim=1)
    kept[:, : spec.offsets[keep_scales]] = True
    return kept

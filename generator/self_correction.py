"""Self-correction: training on token histories with errors, which the later scales must repair.

Infinity (arXiv 2412.04431, section 3.4) flips bits of the tokens that the input is made of and
quantizes the next scale's residual from what the flipped ones leave. Here a token of the Leech
lattice moves to one of its 4,600 nearest codes, and a binary token (LFQ, BSQ) flips one bit.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lambda24.common.config import config_class
from lambda24.common.data.batches import Batch, uniform_from_keys
from lambda24.tokenizer import ImageTokenizer, TokenPyramid
from lambda24.tokenizer.lattices.neighbors import NUM_TRIES, draw_neighbors
from lambda24.tokenizer.quantizers import LeechConfig
from lambda24.tokenizer.quantizers.binary import BinaryQuantizer

CHOICE_STREAM, ERROR_STREAM = 1000, 2000
"""First of the random streams of a sample, one a scale: which tokens err, and how."""

Probability = Annotated[float, Field(ge=0, le=1)]


@config_class
class SelfCorrectionConfig:
    """How often a token of the history is wrong: at every scale, or one number a scale."""

    probability: Probability | tuple[Probability, ...] = 0.1


class SelfCorrection:
    """Encodes images with errors in the history.

    Raises:
        ValueError: a quantizer without a notion of nearest tokens, or another number of scales.
    """

    def __init__(self, config: SelfCorrectionConfig, image_tokenizer: ImageTokenizer) -> None:
        spec, quantizer = image_tokenizer.spec, image_tokenizer.pyramid.quantizer
        kind = image_tokenizer.config.quantizer.kind
        if not isinstance(quantizer, BinaryQuantizer) and not isinstance(
            image_tokenizer.config.quantizer, LeechConfig
        ):
            raise ValueError(
                f"self_correction knows the nearest tokens of leech, lfq and bsq, not of {kind!r}"
            )
        given = config.probability
        self.probabilities = given if isinstance(given, tuple) else (given,) * spec.num_scales
        if len(self.probabilities) != spec.num_scales:
            raise ValueError(
                f"self_correction.probability must be one number or {spec.num_scales}, one a "
                f"scale, got {len(self.probabilities)}"
            )
        self.image_tokenizer = image_tokenizer

    def encode(self, batch: Batch) -> tuple[TokenPyramid, TokenPyramid]:
        """Targets, and the history that a generator's inputs are made of.

        Scale k of the targets is right given the first k - 1 scales of the history.
        """
        targets: list[Tensor] = []

        def replace(scale: int, tokens: Tensor) -> Tensor:
            targets.append(tokens)
            return self._err(scale, tokens, batch.keys)

        history = self.image_tokenizer.encode(batch.images, replace)
        return TokenPyramid.from_scales(targets, history.spec), history

    def _err(self, scale: int, tokens: Tensor, keys: Tensor) -> Tensor:
        """`tokens (B, n, G)` with each wrong at this scale's probability."""
        shape = tokens.shape[1:-1]
        draws = uniform_from_keys(keys, CHOICE_STREAM + scale, shape)
        wrong = draws < self.probabilities[scale]  # (B, n)
        is_leech = not isinstance(self.image_tokenizer.pyramid.quantizer, BinaryQuantizer)
        count = NUM_TRIES + 1 if is_leech else 1
        numbers = uniform_from_keys(keys, ERROR_STREAM + scale, (*shape, count))[wrong]
        result = tokens.clone()
        if is_leech:
            result[wrong] = draw_neighbors(tokens[wrong][:, 0], numbers)[:, None]
        else:
            sizes = self.image_tokenizer.spec.codebook_sizes
            result[wrong] = flip_bits(tokens[wrong], numbers[:, 0], sizes)
        return result


def flip_bits(tokens: Tensor, uniforms: Tensor, codebook_sizes: tuple[int, ...]) -> Tensor:
    """Flips one bit of each token `(N, G)`, number `floor(bits * u)`; sizes are powers of two."""
    bits = [size.bit_length() - 1 for size in codebook_sizes]
    place = (uniforms.double() * sum(bits)).long()  # (N,)
    start = 0
    columns = []
    for column, count in zip(tokens.unbind(1), bits, strict=True):
        inside = (place >= start) & (place < start + count)
        flipped = column ^ (torch.ones_like(column) << (place - start).clamp(0, count - 1))
        columns.append(torch.where(inside, flipped, column))
        start += count
    return torch.stack(columns, dim=1)

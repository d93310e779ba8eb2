"""ImageCodec: images to bytes and back, through a tokenizer and, if there is one, its generator.

Three modes: `fixed` packs tokens in log2 of their codebook, `static` range codes them under tables
of how often each code occurs, `model` under the generator's conditional probabilities, scale by
scale as it samples. Decoding repeats the encoder's computation: it runs in float64, and what is
coded with is rounded to a coarse grid, so that batches, threads and machines nearly always agree;
where they do not, the checksum of the tokens says so and no image is returned.

Shapes: B tiles (images of the tokenizer's size), L tokens of a pyramid, G codebooks of a token.
"""

from __future__ import annotations

import copy
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lambda24.common.images import as_rgb, from_uint8, to_uint8
from lambda24.common.pretrained import PretrainedModel, state_digest
from lambda24.generator.model import NextScaleGenerator
from lambda24.generator.phases import (
    flat_positions,
    place_step,
    step_inputs,
    teacher_forcing_inputs,
)
from lambda24.sampling.generate import check_specs
from lambda24.tokenizer.codec.container import (
    DIGEST_BYTES,
    Header,
    Mode,
    read_container,
    write_container,
)
from lambda24.tokenizer.codec.packing import pack_tokens, unpack_tokens
from lambda24.tokenizer.codec.range_coding import Coder, Decoder, Encoder, code_categories
from lambda24.tokenizer.codec.tables import StaticTables
from lambda24.tokenizer.codec.tiles import cut, grid, join
from lambda24.tokenizer.model import ImageTokenizer
from lambda24.tokenizer.tokens import TokenPyramid

# Tiles whose tokens are coded scale by scale together. A property of the format.
GROUP = 64
Guess = Literal["guess"]


class ImageCodec:
    """Codes images with one tokenizer.

    Args:
        image_tokenizer: put in eval mode.
        generator: for mode "model", of the same pyramid; put in eval mode.
        tables: for mode "static".
        overlap: pixels that neighbouring tiles of larger images share.

    Raises:
        ValueError: models or tables of different pyramids.
    """

    def __init__(
        self,
        image_tokenizer: ImageTokenizer,
        generator: NextScaleGenerator | None = None,
        tables: StaticTables | None = None,
        *,
        overlap: int | None = None,
    ) -> None:
        if generator is not None:
            check_specs(generator, image_tokenizer)
        if tables is not None and tables.spec != image_tokenizer.spec:
            raise ValueError(
                f"tables have spec {tables.spec}, the tokenizer has {image_tokenizer.spec}"
            )
        self.image_tokenizer = image_tokenizer.eval()
        self.tables = tables
        self.tile = image_tokenizer.config.image_size
        self.overlap = self.tile // 8 if overlap is None else overlap
        grid(1, 1, self.tile, self.overlap)
        self.num_classes = 0 if generator is None else generator.num_classes
        self._generator = None if generator is None else copy.deepcopy(generator).double().eval()
        self._pyramid = copy.deepcopy(image_tokenizer.pyramid).double()

    def encode(
        self,
        images: Sequence[Image.Image],
        mode: Mode = "fixed",
        *,
        labels: Sequence[int] | Guess | None = None,
        batch_size: int = 16,
        progress: bool = False,
    ) -> bytes:
        """One file of all images.

        Args:
            labels: for mode "model": class numbers, None for an unknown class, "guess" for the
                class of each image under which it takes the fewest bits.
            batch_size: tiles that the networks see at a time.

        Raises:
            ValueError: no images, a mode without its model or tables, labels that do not fit.
        """
        if not images:
            raise ValueError("images must not be empty")
        self._check_mode(mode)
        pixels = [np.asarray(as_rgb(image)) for image in images]
        sizes = tuple((image.shape[1], image.shape[0]) for image in pixels)
        counts = [self._num_tiles(size) for size in sizes]
        tokens = self._tokenize(pixels, sum(counts), batch_size, progress)
        if mode == "fixed":
            payload = pack_tokens(tokens.flatten(0, 1), self.image_tokenizer.spec.codebook_sizes)
        else:
            encoder = Encoder()
            classes = None
            if mode == "model":
                classes = self._labels(labels, tokens, counts, batch_size)
            self._code(encoder, mode, tokens, counts, classes, batch_size, progress)
            payload = encoder.bytes()
        header = Header(mode, self.digest(mode), sizes, content_checksum(tokens, sizes))
        return write_container(header, payload)

    def decode(
        self,
        data: bytes,
        *,
        num_scales: int | None = None,
        batch_size: int = 16,
        progress: bool = False,
    ) -> list[Image.Image]:
        """The images of a file.

        Args:
            num_scales: decode from the first so many scales only; None is all.

        Raises:
            ValueError: damaged bytes, another version, other models than it was coded with, or a
                computation that came out differently on this machine.
        """
        tokens, header = self.decode_tokens(data, batch_size=batch_size, progress=progress)
        spec = self.image_tokenizer.spec
        scales = spec.num_scales if num_scales is None else num_scales
        if not 1 <= scales <= spec.num_scales:
            raise ValueError(f"num_scales must be in [1, {spec.num_scales}], got {scales}")
        tiles = self._detokenize(tokens, scales, batch_size)
        images = []
        for width, height in header.sizes:
            image = join(tiles, width, height, *self._tiling((width, height)))
            images.append(Image.fromarray(image))
        return images

    def decode_tokens(
        self, data: bytes, *, batch_size: int = 16, progress: bool = False
    ) -> tuple[Tensor, Header]:
        """Tokens int64 (B, L, G) of all tiles of a file, and its header; errors as in `decode`."""
        header, payload = read_container(data)
        self._check_mode(header.mode)
        own = self.digest(header.mode)
        if header.digest != own:
            raise ValueError(
                f"coded with other models: their digest is {header.digest.hex()}, "
                f"that of these is {own.hex()}"
            )
        spec = self.image_tokenizer.spec
        counts = [self._num_tiles(size) for size in header.sizes]
        total = sum(counts)
        if header.mode == "fixed":
            flat = unpack_tokens(payload, total * spec.length, spec.codebook_sizes)
            tokens = flat.view(total, spec.length, spec.num_codebooks)
        else:
            if total > 64 * (len(payload) + 64) * spec.length:
                raise ValueError(f"damaged: {len(payload)} bytes cannot hold {total} tiles")
            decoder = Decoder(payload)
            tokens = self._code(decoder, header.mode, None, counts, None, batch_size, progress)
        found = content_checksum(tokens, header.sizes)
        if found != header.checksum:
            raise ValueError(
                f"decoded to other tokens than were coded: checksum {header.checksum:08x}, got "
                f"{found:08x}; this machine or its libraries compute too differently"
            )
        return tokens, header

    @staticmethod
    def container_bytes(data: bytes) -> int:
        """How many of a file's bytes are not the payload."""
        return len(data) - len(read_container(data)[1])

    def digest(self, mode: Mode) -> bytes:
        """What a file of this mode depends on: weights, tables, the size of overlaps."""
        parts = [_model_digest(self.image_tokenizer), str(self.overlap)]
        if mode == "model" and self._generator is not None:
            parts.append(_model_digest(self._generator))
        if mode == "static" and self.tables is not None:
            parts.append(self.tables.digest())
        return hashlib.sha256(" ".join(parts).encode()).digest()[:DIGEST_BYTES]

    def _check_mode(self, mode: Mode) -> None:
        if mode == "static" and self.tables is None:
            raise ValueError("mode 'static' needs tables: fit them on training tokens first")
        if mode == "model" and self._generator is None:
            raise ValueError("mode 'model' needs a generator, this is a tokenizer alone")

    def _tiling(self, size: tuple[int, int]) -> tuple[int, int]:
        """Tile and overlap of an image: one that fits a tile has no neighbours."""
        return self.tile, 0 if max(size) <= self.tile else self.overlap

    def _num_tiles(self, size: tuple[int, int]) -> int:
        columns, rows = grid(*size, *self._tiling(size))
        return columns * rows

    def _tokenize(
        self, pixels: Sequence[np.ndarray], total: int, batch_size: int, progress: bool
    ) -> Tensor:
        tiles = (tile for image in pixels for tile in cut(image, *self._tiling(image.shape[1::-1])))
        rows: list[Tensor] = []
        with tqdm(total=total, unit="tile", desc="tokens", disable=not progress) as bar:
            while batch := [tile for _, tile in zip(range(batch_size), tiles, strict=False)]:
                stacked = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
                images = from_uint8(stacked).to(self.image_tokenizer.device)
                rows.append(self.image_tokenizer.encode(images).indices.cpu())
                bar.update(len(batch))
        return torch.cat(rows)

    @torch.inference_mode()
    def _detokenize(self, tokens: Tensor, scales: int, batch_size: int) -> Iterator[np.ndarray]:
        """Tiles uint8 (side, side, 3)."""
        for part in tokens.split(batch_size):
            pyramid = TokenPyramid(part.to(self.image_tokenizer.device), self.image_tokenizer.spec)
            for state in self.image_tokenizer.pyramid.states(pyramid):
                if state.scale == scales:
                    images = to_uint8(self.image_tokenizer.decode_latent(state.latent))
                    break
            yield from images.permute(0, 2, 3, 1).cpu().numpy()

    def _labels(
        self,
        labels: Sequence[int] | Guess | None,
        tokens: Tensor,
        counts: Sequence[int],
        batch_size: int,
    ) -> list[int]:
        """The class of each image; `num_classes` is the unknown one."""
        if labels is None:
            return [self.num_classes] * len(counts)
        if labels == "guess":
            return self._guess(tokens, counts, batch_size)
        found = [int(label) for label in labels]
        if len(found) != len(counts):
            raise ValueError(f"got {len(counts)} images but {len(found)} labels")
        if found and not 0 <= min(found) <= max(found) <= self.num_classes:
            raise ValueError(
                f"labels must be in [0, {self.num_classes}], got [{min(found)}, {max(found)}]"
            )
        return found

    @torch.inference_mode()
    def _guess(self, tokens: Tensor, counts: Sequence[int], batch_size: int) -> list[int]:
        """For each image the class of the smallest loss, null class included."""
        generator, spec = self._generator, self.image_tokenizer.spec
        assert generator is not None
        costs = []
        for part in tokens.split(batch_size):
            pyramid = TokenPyramid(part.to(generator.device), spec)
            phases = generator.config.phases
            inputs = teacher_forcing_inputs(self.image_tokenizer, pyramid, phases)
            rows = []
            for label in range(self.num_classes + 1):
                chosen = torch.full((len(part),), label, device=generator.device)
                hidden = generator(inputs.double(), chosen)
                rows.append(generator.head.code_loss(hidden, pyramid.indices).nll.sum(1).cpu())
            costs.append(torch.stack(rows, dim=1))
        whole = torch.cat(costs).split(list(counts))
        return [int(image.sum(0).argmin()) for image in whole]

    def _code(
        self,
        coder: Coder,
        mode: Mode,
        tokens: Tensor | None,
        counts: Sequence[int],
        labels: Sequence[int] | None,
        batch_size: int,
        progress: bool,
    ) -> Tensor:
        """Codes all tiles, group by group and within it scale by scale; returns their tokens."""
        if mode == "model":
            labels = self._code_labels(coder, labels, len(counts))
            classes = [label for label, n in zip(labels, counts, strict=True) for _ in range(n)]
        total, groups = sum(counts), []
        with tqdm(total=total, unit="tile", desc="coding", disable=not progress) as bar:
            for start in range(0, total, GROUP):
                stop = min(total, start + GROUP)
                own = None if tokens is None else tokens[start:stop]
                if mode == "static":
                    groups.append(self._code_static(coder, own, stop - start))
                else:
                    chosen = torch.tensor(classes[start:stop])
                    groups.append(self._code_model(coder, own, chosen, batch_size))
                bar.update(stop - start)
        return torch.cat(groups)

    def _code_labels(self, coder: Coder, labels: Sequence[int] | None, count: int) -> list[int]:
        weights = torch.zeros(1, self.num_classes + 1, dtype=torch.float64)
        own = None if labels is None else torch.tensor(labels)
        found: list[int] = code_categories(coder, weights, own, count).tolist()
        return found

    def _code_static(self, coder: Coder, tokens: Tensor | None, count: int) -> Tensor:
        assert self.tables is not None
        spec, scales = self.image_tokenizer.spec, []
        for k, length in enumerate(spec.scale_lengths):
            own = None if tokens is None else tokens[:, spec.scale_slice(k)].flatten(0, 1)
            rows = self.tables.code(coder, k, own, count * length)
            scales.append(rows.view(count, length, spec.num_codebooks))
        return torch.cat(scales, dim=1)

    @torch.inference_mode()
    def _code_model(
        self, coder: Coder, tokens: Tensor | None, labels: Tensor, batch_size: int
    ) -> Tensor:
        """One group (b, L, G): the sampler's loop, with a coder in the place of random numbers."""
        generator, spec = self._generator, self.image_tokenizer.spec
        assert generator is not None
        device, parts = generator.device, labels.split(batch_size)
        caches = [generator.make_cache(len(part)) for part in parts]
        states = [
            self._pyramid.initial_state(len(part), device, dtype=torch.float64) for part in parts
        ]
        found: list[Tensor | None] = [None] * len(parts)  # of the scale at hand
        scales: list[Tensor] = []
        for step, following in zip(generator.steps, (*generator.steps[1:], None), strict=True):
            known = None if tokens is None else tokens[:, flat_positions(spec, step)]
            own = None if known is None else known.split(batch_size)
            for i, part in enumerate(parts):
                inputs = step_inputs(
                    self.image_tokenizer, states[i], found[i], step, generator.config.phases
                )
                hidden = generator(inputs, part.to(device), caches[i])
                coded = [
                    self._code_image(coder, row, None if own is None else own[i][n])
                    for n, row in enumerate(hidden)
                ]
                placed = place_step(found[i], torch.stack(coded).to(device), step, spec)
                found[i] = placed
                if following is None or following.scale > step.scale:
                    states[i] = self._pyramid.accumulate(states[i], placed)
            if following is None or following.scale > step.scale:
                scales.append(torch.cat([part for part in found if part is not None]).cpu())
                found = [None] * len(parts)
        return torch.cat(scales, dim=1)

    def _code_image(self, coder: Coder, hidden: Tensor, tokens: Tensor | None) -> Tensor:
        """Tokens (n, G) of one scale of one tile; hidden states (n, W)."""
        assert self._generator is not None
        logits = self._generator.head.distribution(hidden).logits().double()
        sizes = self.image_tokenizer.spec.codebook_sizes
        if len(sizes) == 1:
            logits = logits.unsqueeze(-2)  # (n, G, V)
        columns = [
            code_categories(coder, logits[:, g, :size], None if tokens is None else tokens[:, g])
            for g, size in enumerate(sizes)
        ]
        return torch.stack(columns, dim=1)


def content_checksum(tokens: Tensor, sizes: Sequence[tuple[int, int]]) -> int:
    """CRC-32 of tokens as little-endian 64-bit integers and of the images' sizes."""
    numbers = tokens.cpu().contiguous().numpy().astype("<i8").tobytes()
    return zlib.crc32(np.array(sizes, "<i8").tobytes(), zlib.crc32(numbers))


def _model_digest(model: PretrainedModel) -> str:
    """Of config and weights, whatever number format the weights are held in."""
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    return state_digest(json.dumps(model.config_dict(), sort_keys=True), state)

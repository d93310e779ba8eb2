"""Tokens of a whole training set on disk, so that a generator trains without its tokenizer.

A folder of `cache.json` (what the tokens are of) and shards, each one safetensors file with a
checksum beside it. Every image is there once for each variant (random crop, move and bend) and,
mirrored, once more; training picks by the sample's key, so a mirrored image comes when it would
have come from the images themselves. Without random crops and augmentation there is one variant,
and the tokens of a run are those of the run that encodes images as it goes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lambda24.common.config import to_dict
from lambda24.common.data.batches import (
    FINGERPRINT,
    IndexedData,
    RawBatch,
    hash_integers,
    uniform_from_keys,
)
from lambda24.common.data.cut import FLIP_STREAM
from lambda24.common.data.dataset import ImageDataset, load_dataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.files import reading, replace_text
from lambda24.common.images import from_uint8
from lambda24.common.pretrained import state_digest
from lambda24.tokenizer.model import ImageTokenizer
from lambda24.tokenizer.token_shards import is_whole, read_shard, shard_file, write_shard

PLAN_FILE = "cache.json"
FORMAT = 2
VARIANT_STREAM = 106
"""Names the random stream that picks one of an image's variants."""


@dataclass(frozen=True)
class CachePlan:
    """What the tokens of a cache are of.

    Args:
        tokenizer: hash of what makes tokens, see `tokenizer_fingerprint`.
        data: `ImageDataset.fingerprint`.
        num_images: of the data set; each has `variants` x (2 if `flip`) entries.
        variants: random crops, moves and bends of an image; None is the image as it is.
        augment: how it was moved and bent, as JSON.
        precision: what the encoder computed in, "fp32" or "bf16".
    """

    tokenizer: str
    data: str
    num_images: int
    shard_size: int
    flip: bool
    variants: int | None
    augment: dict[str, Any] | None
    image_size: int
    resize: float | None
    scales: list[int]
    codebook_sizes: list[int]
    precision: str
    format: int = FORMAT

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.shard_size)

    def images_of(self, shard: int) -> range:
        start = shard * self.shard_size
        return range(start, min(self.num_images, start + self.shard_size))


def tokenizer_fingerprint(image_tokenizer: ImageTokenizer) -> str:
    """SHA-256 of config and weights, without the decoder's, which no token depends on."""
    text = json.dumps(image_tokenizer.config_dict(), sort_keys=True)
    state: dict[str, Tensor] = image_tokenizer.state_dict()
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("decoder.")}
    return state_digest(text, kept)


def make_plan(
    image_tokenizer: ImageTokenizer,
    data: DataConfig,
    *,
    variants: int | None,
    shard_size: int,
    precision: str,
) -> tuple[CachePlan, ImageDataset]:
    """The plan of a cache, and the images in the order of their indices.

    Raises:
        ValueError: a number of variants without random crops or augmentation or the other way
            round, images of another size than the tokenizer's, or data without an index.
    """
    is_random = data.crop == "random" or data.augment is not None
    if (variants is not None) != is_random:
        how = "off" if data.augment is None else "on"
        raise ValueError(
            f"variants {variants}, data.crop {data.crop!r} and data.augment {how}: give a number of"
            " variants (extract_tokens.py --variants) for random crops or augmentation, else none"
        )
    if data.image_size != image_tokenizer.config.image_size:
        raise ValueError(
            f"data.image_size is {data.image_size}, but the tokenizer was trained at "
            f"{image_tokenizer.config.image_size}"
        )
    dataset = load_dataset(replace(data, flip=False), train=True)
    plan = CachePlan(
        tokenizer=tokenizer_fingerprint(image_tokenizer),
        data=dataset.fingerprint,
        num_images=len(dataset),
        shard_size=shard_size,
        flip=data.flip,
        variants=variants,
        augment=None if data.augment is None else to_dict(data.augment),
        image_size=data.image_size,
        resize=data.resize,
        scales=list(image_tokenizer.spec.scales),
        codebook_sizes=list(image_tokenizer.spec.codebook_sizes),
        precision=precision,
    )
    return plan, dataset


def start_cache(folder: Path, plan: CachePlan) -> None:
    """Writes the plan, or checks that it is the one there.

    Raises:
        ValueError: the folder holds tokens of something else.
    """
    if (folder / PLAN_FILE).is_file():
        _check_same(folder, read_plan(folder), asdict(plan))
        return
    replace_text(folder / PLAN_FILE, json.dumps(asdict(plan), indent=2) + "\n")


def write_shards(
    folder: Path,
    plan: CachePlan,
    image_tokenizer: ImageTokenizer,
    dataset: ImageDataset,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[int]:
    """Makes this process's share of the shards that are not there whole; yields each one's number.

    The tokenizer's device is used; autocast is the caller's.
    """
    for shard in range(rank, plan.num_shards, world_size):
        file = shard_file(folder, shard)
        if is_whole(file):
            continue
        parts, labels = [], []
        images = plan.images_of(shard)
        for start in range(images.start, images.stop, batch_size):
            indices = list(range(start, min(images.stop, start + batch_size)))
            tokens, found = _encode(plan, image_tokenizer, dataset, indices)
            parts.append(tokens)
            labels.append(found)
        largest = max(plan.codebook_sizes)
        write_shard(file, torch.cat(parts), torch.cat(labels), largest_codebook=largest, rank=rank)
        yield shard


def _encode(
    plan: CachePlan, image_tokenizer: ImageTokenizer, dataset: ImageDataset, indices: list[int]
) -> tuple[Tensor, Tensor]:
    """Tokens `(N, variants, flips, L, G)` and labels `(N,)` of some images."""
    variants = []
    for variant in range(plan.variants or 1):
        # Any fixed keys: a variant's number and the image decide how it is cut and moved.
        keys = hash_integers(torch.tensor(indices), variant)
        raw = dataset.read(indices, keys)
        pictures = [raw.images, raw.images.flip(-1)] if plan.flip else [raw.images]
        flips = [
            image_tokenizer.encode(from_uint8(images).to(image_tokenizer.device)).indices.cpu()
            for images in pictures
        ]
        variants.append(torch.stack(flips, dim=1))
    return torch.stack(variants, dim=1), raw.labels


class TokenCache(IndexedData):
    """Tokens in place of images, for `common.training.loop.fit`; made by `open`."""

    def __init__(self, folder: Path, plan: CachePlan, *, flip: bool) -> None:
        self.plan = plan
        self._flip = flip
        shards = [read_shard(shard_file(folder, shard)) for shard in range(plan.num_shards)]
        self._tokens = [tokens for tokens, _ in shards]
        self.labels = torch.cat([labels for _, labels in shards])

    @classmethod
    def open(
        cls,
        folder: str | Path,
        image_tokenizer: ImageTokenizer,
        data: DataConfig,
        *,
        precision: Literal["fp32", "bf16"],
    ) -> TokenCache:
        """Checks everything about a cache but the tokens themselves, which the checksums vouch for.

        Raises:
            ValueError: no cache, missing or damaged shards, another tokenizer or precision than the
                run's, other data, or data that is cut in a way that the cache does not hold.
        """
        folder = Path(folder)
        found = read_plan(folder)
        is_random = data.crop == "random" or data.augment is not None
        variants = (found["variants"] or 1) if is_random else None
        flip = bool(found["flip"]) or data.flip  # a cache may hold more than is wanted
        plan, _ = make_plan(
            image_tokenizer,
            replace(data, flip=flip),
            variants=variants,
            shard_size=found["shard_size"],
            precision=precision,
        )
        _check_same(folder, found, asdict(plan))
        missing = [s for s in range(plan.num_shards) if not is_whole(shard_file(folder, s))]
        if missing:
            raise ValueError(
                f"{folder}: {len(missing)} of {plan.num_shards} shards are missing or damaged, "
                f"the first is number {missing[0]}; scripts/extract_tokens.py makes them"
            )
        return cls(folder, plan, flip=data.flip)

    def __len__(self) -> int:
        return self.plan.num_images

    @property
    def identity(self) -> dict[str, str]:
        return {FINGERPRINT: self.plan.data, "variants": str(self.plan.variants)}

    def read(self, indices: Sequence[int], keys: Tensor) -> RawBatch:
        """Tokens of the variant and flip that `keys (B,)` choose."""
        flips = torch.zeros(len(keys), dtype=torch.int64)
        if self._flip:
            flips = (uniform_from_keys(keys, FLIP_STREAM) < 0.5).long()
        draws = uniform_from_keys(keys, VARIANT_STREAM)
        variants = (draws * (self.plan.variants or 1)).long()
        rows = []
        for index, variant, flip in zip(indices, variants.tolist(), flips.tolist(), strict=True):
            shard, place = divmod(index, self.plan.shard_size)
            rows.append(self._tokens[shard][place, variant, flip])
        return RawBatch(
            images=torch.empty(len(rows), 3, 0, 0, dtype=torch.uint8),
            labels=self.labels[list(indices)],
            keys=keys,
            tokens=torch.stack(rows).long(),
        )

    def note_stand_ins(self, stand_ins: Mapping[int, int]) -> None:
        """Nothing can be unreadable here."""


def read_plan(folder: Path) -> dict[str, Any]:
    """The plan as it stands in a folder.

    Raises:
        ValueError: no plan, or not one that this version reads.
    """
    if not (folder / PLAN_FILE).exists():
        raise ValueError(
            f"tokens: {folder} is not a token cache, {PLAN_FILE} is missing; "
            "scripts/extract_tokens.py with the same config makes it"
        )
    with reading(folder / PLAN_FILE, "the plan of a token cache"):
        found: dict[str, Any] = dict(json.loads((folder / PLAN_FILE).read_text(encoding="utf-8")))
    if found.get("format") != FORMAT:
        raise ValueError(f"{folder} has format {found.get('format')}, this version reads {FORMAT}")
    return found


def _check_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [
        f"{key} is {found.get(key)!r} there and {value!r} here"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if differing:
        raise ValueError(f"{folder} holds tokens of something else: {'; '.join(differing)}")

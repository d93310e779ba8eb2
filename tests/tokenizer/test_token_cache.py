"""Caches of tokens: what they hold, how they go on, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lambda24.common.data.augmentation import AugmentConfig
from lambda24.common.data.batches import Batch, build_loader, hash_integers
from lambda24.common.data.dataset import load_dataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.images import from_uint8
from lambda24.tokenizer import ImageTokenizer, PyramidConfig, TokenizerConfig
from lambda24.tokenizer.autoencoders.cnn import CNNConfig
from lambda24.tokenizer.token_cache import (
    CachePlan,
    TokenCache,
    make_plan,
    start_cache,
    tokenizer_fingerprint,
    write_shards,
)

DATA = DataConfig(path="digits", image_size=8, max_images=20, flip=True)


def build_tokenizer(seed: int = 0) -> ImageTokenizer:
    torch.manual_seed(seed)
    config = TokenizerConfig(
        image_size=8,
        pyramid=PyramidConfig(scales=(1, 2)),
        autoencoder=CNNConfig(
            channels=(8, 8), patch_size=2, encoder_blocks=1, decoder_blocks=1, groups=4
        ),
    )
    return ImageTokenizer(config).eval()


@pytest.fixture(scope="module")
def image_tokenizer() -> ImageTokenizer:
    return build_tokenizer()


def extract(
    folder: Path,
    image_tokenizer: ImageTokenizer,
    data: DataConfig = DATA,
    variants: int | None = None,
) -> list[int]:
    plan, dataset = make_plan(
        image_tokenizer, data, variants=variants, shard_size=8, precision="fp32"
    )
    start_cache(folder, plan)
    return list(write_shards(folder, plan, image_tokenizer, dataset, batch_size=3))


def batches(source: object, count: int, workers: int = 0) -> list[Batch]:
    loader = build_loader(source, batch_size=8, seed=3, num_workers=workers)  # type: ignore[arg-type]
    return [next(loader) for _ in range(count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_the_tokens_of_the_images_they_replace(
    tmp_path: Path, image_tokenizer: ImageTokenizer, workers: int
) -> None:
    assert extract(tmp_path, image_tokenizer) == [0, 1, 2]
    cache = TokenCache.open(tmp_path, image_tokenizer, DATA, precision="fp32")
    assert len(cache) == 20
    images = batches(load_dataset(DATA, train=True), 4)
    for cached, online in zip(batches(cache, 4, workers), images, strict=True):
        assert torch.equal(cached.labels, online.labels)
        assert torch.equal(cached.keys, online.keys)
        assert cached.images.shape == (8, 3, 0, 0)
        assert cached.tokens is not None
        assert torch.equal(cached.tokens, image_tokenizer.encode(online.images).indices)
    unflipped = replace(DATA, flip=False)  # a cache may hold more than is wanted
    cached = batches(TokenCache.open(tmp_path, image_tokenizer, unflipped, precision="fp32"), 1)[0]
    assert cached.tokens is not None
    online = batches(load_dataset(unflipped, train=True), 1)[0]
    assert torch.equal(cached.tokens, image_tokenizer.encode(online.images).indices)


def test_random_crops_are_a_choice_of_those_made(
    tmp_path: Path, image_tokenizer: ImageTokenizer
) -> None:
    data = replace(DATA, crop="random", resize=1.5)
    extract(tmp_path, image_tokenizer, data, variants=3)
    cache = TokenCache.open(tmp_path, image_tokenizer, data, precision="fp32")
    keys = torch.arange(60)
    raw = cache.read([5] * 60, keys)
    assert raw.tokens is not None
    assert len(raw.tokens.unique(dim=0)) == 6  # three crops, mirrored or not
    assert torch.equal(raw.tokens, cache.read([5] * 60, keys).tokens)
    with pytest.raises(ValueError, match="variants is 3 there and None here"):
        TokenCache.open(tmp_path, image_tokenizer, replace(data, crop="center"), precision="fp32")
    with pytest.raises(ValueError, match=r"variants None, data\.crop 'random'"):
        extract(tmp_path / "other", image_tokenizer, data)


def test_augmented_images_are_a_choice_of_those_made(
    tmp_path: Path, image_tokenizer: ImageTokenizer
) -> None:
    moves = AugmentConfig(rotation=20, elastic=0.1)
    data = replace(DATA, augment=moves)
    extract(tmp_path, image_tokenizer, data, variants=3)
    cache = TokenCache.open(tmp_path, image_tokenizer, data, precision="fp32")
    dataset = load_dataset(replace(data, flip=False), train=True)
    made = torch.cat(
        [dataset.read([5], hash_integers(torch.tensor([5]), n)).images for n in range(3)]
    )
    made = from_uint8(torch.cat([made, made.flip(-1)]))
    expected = image_tokenizer.encode(made).indices
    tokens = cache.read([5] * 60, torch.arange(60)).tokens
    assert tokens is not None
    assert {tuple(row) for row in tokens.flatten(1).tolist()} == {
        tuple(row) for row in expected.flatten(1).tolist()
    }
    stronger = replace(data, augment=replace(moves, rotation=21))
    with pytest.raises(ValueError, match=r"augment is .*20.* there and .*21.* here"):
        TokenCache.open(tmp_path, image_tokenizer, stronger, precision="fp32")
    with pytest.raises(ValueError, match=r"variants is 3 there and None here; augment is"):
        TokenCache.open(tmp_path, image_tokenizer, DATA, precision="fp32")
    with pytest.raises(ValueError, match=r"variants None, .*data\.augment on"):
        extract(tmp_path / "other", image_tokenizer, data)
    with pytest.raises(ValueError, match=r"variants 3, .*data\.augment off"):
        extract(tmp_path / "other", image_tokenizer, DATA, variants=3)


def test_goes_on_where_it_stopped_and_repairs(
    tmp_path: Path, image_tokenizer: ImageTokenizer
) -> None:
    assert extract(tmp_path, image_tokenizer) == [0, 1, 2]
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert extract(tmp_path, image_tokenizer) == []
    (tmp_path / "shard_00000.sha256").unlink()  # killed before the checksum
    damaged = bytearray(before["shard_00002.safetensors"])
    damaged[-1] ^= 1
    (tmp_path / "shard_00002.safetensors").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"2 of 3 shards are missing or damaged, .* number 0"):
        TokenCache.open(tmp_path, image_tokenizer, DATA, precision="fp32")
    assert extract(tmp_path, image_tokenizer) == [0, 2]
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_processes_share_the_shards(tmp_path: Path, image_tokenizer: ImageTokenizer) -> None:
    plan, dataset = make_plan(image_tokenizer, DATA, variants=None, shard_size=8, precision="fp32")
    start_cache(tmp_path, plan)
    made = [
        list(
            write_shards(
                tmp_path, plan, image_tokenizer, dataset, batch_size=8, rank=rank, world_size=2
            )
        )
        for rank in range(2)
    ]
    assert made == [[0, 2], [1]]
    TokenCache.open(tmp_path, image_tokenizer, DATA, precision="fp32")


def test_refuses_another_tokenizer_or_other_data(
    tmp_path: Path, image_tokenizer: ImageTokenizer
) -> None:
    extract(tmp_path, image_tokenizer)
    other = build_tokenizer(seed=1)
    for action in (extract, lambda *arguments: TokenCache.open(*arguments, DATA, precision="fp32")):
        with pytest.raises(ValueError, match="tokens of something else: tokenizer is"):
            action(tmp_path, other)
    with pytest.raises(ValueError, match=r"data is .* num_images is 20 there and 19 here"):
        TokenCache.open(tmp_path, image_tokenizer, replace(DATA, max_images=19), precision="fp32")
    with pytest.raises(ValueError, match=r"image_size is 16, but the tokenizer was trained at 8"):
        TokenCache.open(tmp_path, image_tokenizer, replace(DATA, image_size=16), precision="fp32")
    with pytest.raises(ValueError, match=r"is not a token cache.*extract_tokens\.py"):
        TokenCache.open(tmp_path / "nothing", image_tokenizer, DATA, precision="fp32")
    with pytest.raises(ValueError, match="precision is 'fp32' there and 'bf16' here"):
        TokenCache.open(tmp_path, image_tokenizer, DATA, precision="bf16")
    plain = tmp_path / "plain"
    extract(plain, image_tokenizer, replace(DATA, flip=False))
    with pytest.raises(ValueError, match="flip is False there and True here"):
        TokenCache.open(plain, image_tokenizer, DATA, precision="fp32")


def test_fingerprint_is_of_what_makes_tokens() -> None:
    first, second = build_tokenizer(), build_tokenizer()
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(second)
    with torch.no_grad():
        next(second.decoder.parameters()).add_(1)
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(second)
    with torch.no_grad():
        next(second.encoder.parameters()).view(-1)[0] += 1e-6
    assert tokenizer_fingerprint(first) != tokenizer_fingerprint(second)


def test_shards_cover_the_images() -> None:
    plan = CachePlan(
        tokenizer="",
        data="",
        num_images=17,
        shard_size=8,
        flip=False,
        variants=None,
        augment=None,
        image_size=8,
        resize=1.0,
        scales=[1],
        codebook_sizes=[5],
        precision="fp32",
    )
    assert [i for shard in range(plan.num_shards) for i in plan.images_of(shard)] == list(range(17))

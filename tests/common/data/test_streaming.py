"""Streamed shards: every image once an epoch, the same for all processes and workers, resumed."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lambda24.common.config import from_dict, to_dict
from lambda24.common.data.batches import Batch
from lambda24.common.data.dataset import load_dataset, load_training_data, load_training_sample
from lambda24.common.data.settings import DataConfig
from lambda24.common.data.streaming import StreamedImages, StreamingConfig
from lambda24.common.images import decode_rgb, to_uint8

LANES = 4
SIZES = (7, 3, 5, 9, 4, 6)  # images of the shards


def encoded(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def numbered() -> list[list[int]]:
    """Different numbers for the images of each shard."""
    counter = iter(range(sum(SIZES)))
    return [[next(counter) for _ in range(size)] for size in SIZES]


def parquet_shards(folder: Path, broken: tuple[int, ...] = ()) -> Path:
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    for number, levels in enumerate(numbered()):
        cells = [
            {"bytes": encoded(level)[: 40 if level in broken else None], "path": None}
            for level in levels
        ]
        columns = {"image": cells, "label": [level % 3 for level in levels]}
        name = folder / f"train-{number:05d}-of-{len(SIZES):05d}.parquet"
        parquet.write_table(pyarrow.table(columns), name, row_group_size=3)
    return folder


def tar_shards(folder: Path) -> Path:
    folder.mkdir()
    for number, levels in enumerate(numbered()):
        with tarfile.open(folder / f"train-{number:06d}.tar", "w") as archive:
            for level in levels:
                for ending, content in (("cls", str(level % 3).encode()), ("png", encoded(level))):
                    member = tarfile.TarInfo(f"{level:06d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parquet_shards(tmp_path_factory.mktemp("data") / "shards")


def config(path: Path, **options: Any) -> DataConfig:
    streaming = StreamingConfig(
        **{"shuffle_buffer": 4, "lanes": LANES, "num_classes": 3, **options.pop("streaming", {})}
    )
    return DataConfig(path=str(path), image_size=8, streaming=streaming, **options)


def stream(path: Path, **options: Any) -> StreamedImages:
    data = load_training_data(config(path, **options))
    assert isinstance(data, StreamedImages)
    return data


def levels(batch: Batch) -> list[int]:
    return to_uint8(batch.images)[:, 0, 0, 0].tolist()


def test_config_takes_true() -> None:
    assert from_dict(DataConfig, {"streaming": True}).streaming == StreamingConfig()
    assert from_dict(DataConfig, {"streaming": False}).streaming is None
    changed = from_dict(DataConfig, {"streaming": {"lanes": 2}})
    assert changed.streaming == StreamingConfig(lanes=2)
    assert from_dict(DataConfig, to_dict(changed)) == changed
    with pytest.raises(ValueError, match="max_images 5"):
        from_dict(DataConfig, {"streaming": True, "max_images": 5})


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_every_epoch_holds_every_image_once(folder: Path, tmp_path: Path, kind: str) -> None:
    """All but the last shard, which is held out; lanes have 7, 3, 5, 9 + 4 images or the like."""
    data = stream(folder if kind == "parquet" else tar_shards(tmp_path / "tar"))
    loader = data.loader(batch_size=LANES, seed=0)
    seen: dict[int, Counter[int]] = {}
    epochs = []
    for _ in range(60):
        before = {lane: place.epoch for lane, place in loader.places.items()}
        batch = next(loader)
        for lane, level in enumerate(levels(batch)):
            epoch = loader.places[lane].epoch
            assert epoch - before[lane] in (0, 1)
            seen.setdefault(epoch, Counter())[level] += 1
            epochs.append(epoch)
        assert batch.labels.tolist() == [level % 3 for level in levels(batch)]
    finished = min(place.epoch for place in loader.places.values())
    assert finished >= 5
    for epoch in range(finished):
        assert seen[epoch] == Counter(range(28))
    held_out = load_dataset(config(folder), train=False)
    assert held_out.images_uint8(range(6))[:, 0, 0, 0].tolist() == [*range(28, 34)]
    assert held_out.label_names == data.label_names == ("0", "1", "2")


def test_a_sample_of_the_training_images_has_an_index(folder: Path) -> None:
    """Whole shards, in a fixed order, none of them held out."""
    held_out = load_dataset(config(folder), train=False)
    kept_away = {int(image[0, 0, 0]) for image in held_out.images_uint8(range(len(held_out)))}
    for count in (5, 1000):
        sample = load_training_sample(config(folder), count)
        levels = [int(image[0, 0, 0]) for image in sample.images_uint8(range(len(sample)))]
        assert len(set(levels)) == len(sample) == min(count, sum(SIZES) - len(held_out))
        assert not kept_away & set(levels)
        assert sample.labels.tolist() == [level % 3 for level in levels]


def test_order_depends_on_seed_and_epoch(folder: Path) -> None:
    data = stream(folder)
    orders = [
        [levels(batch) for batch in islice(data.loader(batch_size=LANES, seed=seed), 12)]
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    whole = [level for part in orders[0] for level in part]
    assert whole[:16] != sorted(whole[:16])


def rows(batches: list[Batch]) -> list[tuple[int, int, int]]:
    """(key, label, level) of every image."""
    joined = [torch.cat(part) for part in zip(*[(b.keys, b.labels) for b in batches], strict=True)]
    shown = [level for batch in batches for level in levels(batch)]
    return list(zip(joined[0].tolist(), joined[1].tolist(), shown, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_steps_are_the_same_for_any_number_of_processes(folder: Path, num_workers: int) -> None:
    """One process with whole batches, against two with halves of two micro-batches."""
    data = stream(folder, flip=True, crop="random")
    one = data.loader(batch_size=16, seed=3, num_workers=num_workers)
    two = [data.loader(batch_size=4, seed=3, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(5):
        whole = next(one)
        parts = [next(rank) for _ in range(2) for rank in two]
        assert sorted(rows([whole])) == sorted(rows(parts))
    places = {key: place for rank in two for key, place in rank.state_dict().items()}
    assert places == one.state_dict()


def test_two_processes_have_the_halves_of_a_batch_in_its_order(folder: Path) -> None:
    """Neighbours in a batch stay neighbours: some layers look at groups of them."""
    data = stream(folder)
    one = data.loader(batch_size=8, seed=3)
    two = [data.loader(batch_size=4, seed=3, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(3):
        assert rows([next(one)]) == rows([next(rank) for rank in two])


@pytest.mark.parametrize("num_workers", [0, 3])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_resumes_exactly(folder: Path, tmp_path: Path, kind: str, num_workers: int) -> None:
    """In the middle of blocks, of shards and of epochs; workers do not matter."""
    data = stream(folder if kind == "parquet" else tar_shards(tmp_path / "tar"))
    whole = data.loader(batch_size=8, seed=1)
    states, expected = [], []
    for _ in range(14):
        states.append(whole.state_dict())
        expected.append(next(whole))
    for step in (1, 6, 11) if num_workers == 0 else (6,):
        resumed = data.loader(batch_size=8, seed=1, state=states[step], num_workers=num_workers)
        for batch in expected[step:]:
            again = next(resumed)
            assert torch.equal(again.images, batch.images)
            assert torch.equal(again.keys, batch.keys)
            assert torch.equal(again.labels, batch.labels)
    assert len({int(key) for batch in expected for key in batch.keys}) == 14 * 8


def test_nothing_is_decoded_to_resume(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = stream(folder)
    loader = data.loader(batch_size=8, seed=1)
    for _ in range(4):
        next(loader)
    decoded: list[bytes] = []

    def count(content: bytes) -> Image.Image:
        decoded.append(content)
        return decode_rgb(content)

    monkeypatch.setattr("lambda24.common.data.streaming.decode_rgb", count)
    next(data.loader(batch_size=8, seed=1, state=loader.state_dict()))
    assert len(decoded) == 8


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_skipped_and_counted(tmp_path: Path, num_workers: int) -> None:
    data = stream(parquet_shards(tmp_path / "shards", broken=(2, 12)))
    loader = data.loader(batch_size=LANES, seed=0, num_workers=num_workers)
    first = [next(loader) for _ in range(6)]
    state = loader.state_dict()
    later = [next(loader) for _ in range(20)]
    shown = {level for batch in first + later for level in levels(batch)}
    assert shown == {*range(28)} - {2, 12}
    assert loader.num_skipped >= 2
    resumed = data.loader(batch_size=LANES, seed=0, state=state)
    assert [levels(next(resumed)) for _ in later] == [levels(batch) for batch in later]
    assert resumed.num_skipped == loader.num_skipped


def test_nothing_but_unreadable_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lambda24.common.data.streaming.MAX_UNREADABLE", 30)
    data = stream(parquet_shards(tmp_path / "shards", broken=tuple(range(34))))
    with pytest.raises(ValueError, match="30 images in a row are unreadable, the last"):
        next(data.loader(batch_size=LANES, seed=0))


def test_one_file_is_split_into_row_groups(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes((folder / "train-00003-of-00006.parquet").read_bytes())
    data = stream(tmp_path, streaming={"lanes": 2})
    assert data.split.num_shards == 2  # three groups of three rows, one held out
    with pytest.raises(ValueError, match=r"lanes: .* has 3 shards, which is less than 3 lanes and"):
        stream(tmp_path, streaming={"lanes": 3})


def test_mistakes(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"lanes 4 must be divisible by 3 processes and divide"):
        stream(folder).loader(batch_size=4, seed=0, world_size=3)
    with pytest.raises(ValueError, match=r"lanes 4 .* divide the 6 images of a micro-batch"):
        stream(folder).loader(batch_size=6, seed=0)
    with pytest.raises(ValueError, match=r"'label' of .* does not name its classes"):
        stream(folder, streaming={"num_classes": None})
    with pytest.raises(ValueError, match=r"has label 2 \(allowed: 0 to 1"):
        list(islice(stream(folder, streaming={"num_classes": 2}).loader(batch_size=4, seed=0), 9))
    with pytest.raises(ValueError, match=r"data.split: got 'x', but .* has only: train"):
        stream(folder, split="x")
    with pytest.raises(ValueError, match="have no index"):
        load_dataset(config(folder), train=True)

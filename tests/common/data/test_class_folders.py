"""Folders of images: what lies where, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lambda24.common.data.class_folders import image_files
from lambda24.common.data.dataset import load_dataset
from tests.common.data.image_sets import cells, class_folders, config, picture, table

pytestmark = pytest.mark.usefixtures("own_cache")


def test_class_folders(tmp_path: Path) -> None:
    """Names that look like splits stay classes, here "train" and files called test_*."""
    folder = class_folders(tmp_path / "animals")
    train = load_dataset(config(folder), train=True)
    held_out = load_dataset(config(folder), train=False)
    assert train.label_names == held_out.label_names == ("cat", "train")
    assert (len(train), len(held_out)) == (8, 2)
    everything = torch.cat([d.images_uint8(range(len(d))) for d in (train, held_out)])
    labels = torch.cat([train.labels, held_out.labels])
    assert sorted(everything[:, 0, 0, 0].tolist()) == [*range(5), *range(100, 105)]
    assert torch.equal(labels, (everything[:, 0, 0, 0] >= 100).long())


def test_class_folders_with_splits(tmp_path: Path) -> None:
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "val", count=2)
    assert len(load_dataset(config(tmp_path), train=True)) == 10
    assert len(load_dataset(config(tmp_path), train=False)) == 4


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        ("cat/red/x.png", r"\(.*animals/CLASS/image\), but there is .*animals/cat/red/x\.png$"),
        ("cover.jpg", r"CLASS/image\), but there is .*animals/cover\.jpg$"),
        ("val/cat/x.png", r"val/cat/x\.png; splits \(val\) and classes \(cat, dog\) do not mix$"),
    ],
)
def test_images_in_no_class_folder(tmp_path: Path, image: str, shown: str) -> None:
    """Neither a class that vanishes nor an image that does."""
    folder = class_folders(tmp_path / "animals", names=("cat", "dog"))
    path = folder / image
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(7).save(path)
    with pytest.raises(ValueError, match=rf"data\.path .*one folder per class .*{shown}"):
        load_dataset(config(folder), train=True)


def test_images_beside_split_folders(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", names=("cat", "dog"))
    picture(7).save(tmp_path / "train" / "x.png")
    with pytest.raises(ValueError, match=r"/SPLIT/CLASS/image\), but there is .*/train/x\.png$"):
        load_dataset(config(tmp_path), train=True)


def test_other_files_and_hidden_folders_are_no_images(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", names=("cat", "dog"))
    (tmp_path / "manual.pdf").write_bytes(b"")
    for hidden in ("train/cat/.thumbnails/small.png", "__MACOSX/cat.png", ".old/cat/1.png"):
        (tmp_path / hidden).parent.mkdir(parents=True)
        picture(7).save(tmp_path / hidden)
    train = load_dataset(config(tmp_path, eval_split="train"), train=True)
    assert (len(train), train.label_names) == (10, ("cat", "dog"))


def test_class_folders_may_be_links(tmp_path: Path) -> None:
    class_folders(tmp_path / "all", names=("cat", "dog", "eel"))
    (tmp_path / "some").mkdir()
    for name in ("cat", "eel"):
        (tmp_path / "some" / name).symlink_to(tmp_path / "all" / name)
    train = load_dataset(config(tmp_path / "some", eval_split="train"), train=True)
    assert (len(train), train.label_names) == (10, ("cat", "eel"))
    (tmp_path / "all" / "eel" / "deep").mkdir()
    picture(7).save(tmp_path / "all" / "eel" / "deep" / "x.png")
    with pytest.raises(ValueError, match=r"there is .*/some/eel/deep/x\.png"):
        load_dataset(config(tmp_path / "some"), train=True)


@pytest.mark.parametrize("name", ["my[1]", "my*", "[[x]"])
def test_paths_with_wildcards(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of that name, not those that the pattern stands for."""
    class_folders(tmp_path / "my1", names=("other",))
    folder = class_folders(tmp_path / name / "folders", names=("cat", "dog"))
    table(
        tmp_path / name / "tables" / "train.parquet",
        {"image": cells(range(4)), "label": [0, 1] * 2},
    )
    table(tmp_path / name / "tables" / "test.parquet", {"image": cells(range(2)), "label": [0, 1]})
    assert len(load_dataset(config(folder), train=True)) == 8
    assert len(load_dataset(config(tmp_path / name / "tables"), train=True)) == 4
    assert len(load_dataset(config(tmp_path / name / "tables"), train=False)) == 2
    monkeypatch.chdir(tmp_path / name)
    assert len(load_dataset(config("folders"), train=True)) == 8


def test_single_class_folder(tmp_path: Path) -> None:
    train = load_dataset(config(class_folders(tmp_path, names=("only",))), train=True)
    assert train.label_names == ("only",)


def test_links_that_lead_back_up_are_not_followed(tmp_path: Path) -> None:
    """Nor is the folder walked for ever."""
    folder = class_folders(tmp_path / "animals", names=("cat", "dog"))
    (folder / "cat" / "up").symlink_to(folder)
    (folder / "dog" / "self").symlink_to(folder / "dog")
    train = load_dataset(config(folder, eval_split="train"), train=True)
    assert (len(train), train.label_names) == (10, ("cat", "dog"))
    assert len(image_files(folder)) == 10


@pytest.mark.parametrize(
    ("stray", "content"),
    [
        ("notes.json", b'[{"file_name": "cat/test_0.png", "label": 1}]'),
        ("labels.csv", b"image,label\ncat/test_0.png,1\n"),
        ("cat/list.jsonl", b'{"a": 1}\n'),
        ("metadata.csv", b"file_name,label\ncat/test_0.png,1\n"),
        ("broken.zip", b"no archive"),
        ("train/rows.parquet", b"no table"),
        ("cat/photo.heic", b"?"),
        ("cat/README", b"?"),
    ],
)
def test_stray_files_do_not_change_the_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stray: str, content: bytes
) -> None:
    """Tables and archives beside class folders are named and left aside."""
    folder = class_folders(tmp_path / "animals")
    clean = load_dataset(config(folder), train=True)
    assert not caplog.messages
    (folder / stray).write_bytes(content)
    train = load_dataset(config(folder), train=True)
    assert train.fingerprint == clean.fingerprint
    assert [
        message for message in caplog.messages if "left aside: 1 " in message and stray in message
    ]


def test_fingerprint_sees_every_image(tmp_path: Path) -> None:
    """Of 64 images of one size in bytes any one that is replaced."""
    folder = class_folders(tmp_path / "animals", count=32, names=("cat", "dog"))
    before = load_dataset(config(folder, eval_split="train"), train=True).fingerprint
    for index in (1, 17, 30):
        kept = (folder / "cat" / f"test_{index}.png").read_bytes()
        picture(200).save(folder / "cat" / f"test_{index}.png")
        assert load_dataset(config(folder, eval_split="train"), train=True).fingerprint != before
        (folder / "cat" / f"test_{index}.png").write_bytes(kept)
    assert load_dataset(config(folder, eval_split="train"), train=True).fingerprint == before

"""Digits, tables of images, and everything that can be wrong with images and labels."""

from __future__ import annotations

import logging
import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lambda24.common.data.batches import build_loader, hash_integers
from lambda24.common.data.dataset import load_dataset, stratified
from lambda24.common.data.settings import DataConfig
from lambda24.common.images import to_uint8
from tests.common.data.image_sets import cells, class_folders, config, picture, png, table

pytestmark = pytest.mark.usefixtures("own_cache")


def test_digits() -> None:
    train = load_dataset(DataConfig(image_size=16), train=True)
    held_out = load_dataset(DataConfig(image_size=16), train=False)
    assert len(train) + len(held_out) == 1797
    assert len(held_out) == 359
    assert train.label_names == held_out.label_names == tuple("0123456789")
    shares = torch.bincount(held_out.labels) / torch.bincount(
        torch.cat([train.labels, held_out.labels])
    )
    assert shares.aminmax()[0] > 0.19
    assert shares.aminmax()[1] < 0.21
    images = train.images_uint8(range(3))
    assert images.shape == (3, 3, 16, 16)
    assert torch.equal(images[:, 0], images[:, 2])
    assert train.fingerprint != held_out.fingerprint
    assert train.fingerprint == load_dataset(DataConfig(image_size=16), train=True).fingerprint


def test_digits_keep_their_levels() -> None:
    """At 8 pixels nothing is resized: 17 levels, and the images scikit-learn has."""
    from sklearn.datasets import load_digits

    train = load_dataset(DataConfig(image_size=8), train=True)
    images = train.images_uint8(range(len(train)))[:, 0]
    assert images.unique().tolist() == [round(level * 255 / 16) for level in range(17)]
    known = {row.tobytes() for row in (load_digits().data * 255 / 16).round().astype(np.uint8)}
    assert {image.numpy().tobytes() for image in images} <= known


def test_stratified_takes_its_share_of_every_class() -> None:
    labels = np.repeat(np.arange(4), [1, 10, 30, 59])
    mask = stratified(labels, 0.2)
    assert mask.sum() == 20
    for label, count in enumerate([1, 10, 30, 59]):
        assert abs(mask[labels == label].sum() - 0.2 * count) <= 1
    assert stratified(np.zeros(100, dtype=int), 0.29).sum() == 29  # 0.29 * 100 < 29 in floats


@pytest.mark.parametrize("path", ["../nowhere", "~/nowhere", "a/b/c", "two words", "a--b"])
def test_no_folder_and_no_name_of_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda **options: asked.append(options))
    with pytest.raises(ValueError, match="is not a folder: nothing is there"):
        load_dataset(config(path), train=True)
    assert not asked


def test_the_hub_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistyped folder looks like a dataset's name: that it is none here is said before."""
    import datasets

    said: list[str] = []

    def unreachable(**options: Any) -> None:
        said.append(caplog.text)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for path in ("my_images", "mine/red", "someone/cifar10"):
        caplog.clear()
        with pytest.raises(ValueError, match=rf"'{path}': no such folder is here.*no route"):
            load_dataset(config(path), train=True)
    assert "no folder 'my_images' is here" in said[0]
    assert "no folder 'mine/red' is here" in said[1]
    assert not said[2]
    (tmp_path / "notes").write_text("")
    with pytest.raises(ValueError, match="is not a folder but a file"):
        load_dataset(config("notes"), train=True)


@pytest.mark.parametrize(("image_key", "label_key"), [("img", "label"), ("image", "fine_label")])
def test_parquet_folder(tmp_path: Path, image_key: str, label_key: str) -> None:
    table(tmp_path / "train-0.parquet", {image_key: cells(range(6)), label_key: [0, 1, 2] * 2})
    table(tmp_path / "test-0.parquet", {image_key: cells(range(50, 52)), label_key: [2, 0]})
    train = load_dataset(config(tmp_path), train=True)
    test = load_dataset(config(tmp_path), train=False)
    assert train.label_names == test.label_names == ("0", "1", "2")
    assert (len(train), len(test)) == (6, 2)
    assert test.labels.tolist() == [2, 0]
    assert test.images_uint8([1, 0])[:, 1, 2, 3].tolist() == [51, 50]
    swapped = load_dataset(config(tmp_path, split="test", eval_split="train"), train=True)
    assert len(swapped) == 2


def test_class_label_names_and_strings(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["ant", "bee"])}
    )
    rows = {"photo": [picture(1), picture(2)], "kind": [1, 0]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "a" / "train.parquet")
    named = load_dataset(config(tmp_path / "a", eval_split="train"), train=True)
    assert named.label_names == ("ant", "bee")
    assert named.labels.tolist() == [1, 0]
    words = {"image": cells(range(3)), "label": ["wasp", "fly", "wasp"]}
    table(tmp_path / "b" / "train.parquet", words)
    strings = load_dataset(config(tmp_path / "b", eval_split="train"), train=True)
    assert strings.label_names == ("fly", "wasp")
    assert strings.labels.tolist() == [1, 0, 1]


def test_wrong_labels(tmp_path: Path) -> None:
    table(tmp_path / "a" / "train.parquet", {"image": cells(range(3)), "label": [0, 1, 1]})
    table(tmp_path / "a" / "test.parquet", {"image": cells(range(2)), "label": [0, 2]})
    with pytest.raises(ValueError, match=r"label of image 1 in split 'test' is 2 .*0 to 1"):
        load_dataset(config(tmp_path / "a"), train=False)
    table(tmp_path / "b" / "train.parquet", {"image": cells(range(3)), "label": [0, -1, 1]})
    with pytest.raises(ValueError, match=r"label of image 1 in split 'train' is -1"):
        load_dataset(config(tmp_path / "b"), train=True)
    table(tmp_path / "c" / "train.parquet", {"image": cells(range(3)), "name": ["a", "b", "c"]})
    with pytest.raises(ValueError, match=r"label_key: .* no label column; .*: image, name"):
        load_dataset(config(tmp_path / "c"), train=True)
    with pytest.raises(ValueError, match=r"image_key: .* no image column 'photo'"):
        load_dataset(config(tmp_path / "c", image_key="photo", label_key="name"), train=True)
    table(tmp_path / "d" / "train.parquet", {"image": cells(range(2)), "label": [0.5, 1.0]})
    with pytest.raises(ValueError, match=r"'label' of .* must hold one integer.*float64"):
        load_dataset(config(tmp_path / "d"), train=True)


def test_missing_split(tmp_path: Path) -> None:
    table(tmp_path / "train.parquet", {"image": cells(range(3)), "label": [0, 1, 1]})
    with pytest.raises(ValueError, match=r"data\.split: got 'val', but .* has only: train"):
        load_dataset(config(tmp_path, split="val"), train=True)
    with pytest.raises(ValueError, match=r"data\.eval_split: got 'x', but 'digits' has only: tr"):
        load_dataset(config("digits", eval_split="x"), train=False)
    with pytest.raises(ValueError, match=r"eval_split=null .* holds out 20% of 'train'"):
        load_dataset(config("digits", eval_split="x"), train=True)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no images and no tables"):
        load_dataset(config(tmp_path), train=True)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="holds no images and no tables"):
        load_dataset(config(tmp_path), train=True)
    with pytest.raises(ValueError, match="is not a folder"):
        load_dataset(config(tmp_path / "nothing"), train=True)
    picture(0).save(tmp_path / "flat.png")
    (tmp_path / "cat" / "notes.txt").unlink()
    (tmp_path / "cat").rmdir()
    with pytest.raises(ValueError, match="one folder per class"):
        load_dataset(config(tmp_path), train=True)
    table(tmp_path / "t" / "train.parquet", {"image": cells(range(2)), "label": [0, 1]})
    with pytest.raises(ValueError, match=r"2 images .* none to evaluate on .*eval_fraction 0\.2"):
        load_dataset(config(tmp_path / "t"), train=False)


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_corrupt_images_are_skipped_and_counted(
    tmp_path: Path, crop: str, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    images = cells(range(10, 20))
    images[3]["bytes"] = images[3]["bytes"][:40]
    images[4] = {"bytes": b"not an image", "path": None}
    table(tmp_path / "train.parquet", {"image": images, "label": [0, 1, 2, 3, 4] * 2})
    data = load_dataset(config(tmp_path, crop=crop, eval_split="train"), train=True)
    assert data.num_skipped == 0
    with caplog.at_level(logging.WARNING):
        batches = list(islice(build_loader(data, batch_size=5, seed=0, num_workers=num_workers), 4))
    assert data.num_skipped == 2
    if num_workers == 0:
        assert len(caplog.records) == 1
        assert "unreadable" in caplog.text
    shown = torch.cat([to_uint8(batch.images)[:, 0, 0, 0] for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    assert sorted(shown.tolist()) == sorted([10, 11, 12, 18, 19, 15, 16, 17, 18, 19] * 2)
    assert torch.equal(labels, shown.long() % 5)  # of the same class


def test_messages_name_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class_folders(tmp_path, names=("cat", "dog"), count=3)
    (tmp_path / "cat" / "test_1.png").write_bytes(b"x")
    picture(0, size=(5, 6)).save(tmp_path / "dog" / "test_2.png")
    data = load_dataset(config(tmp_path, resize=None, eval_split="train"), train=True)
    data.images_uint8([1])
    assert re.search(r"image 1 \(.*/cat/test_1\.png\) is unreadable, the next", caplog.text)
    with pytest.raises(ValueError, match=r"image 5 \(.*/dog/test_2\.png\) of .* is 5 x 6 pixels"):
        data.images_uint8([5])


def test_no_readable_image(tmp_path: Path) -> None:
    images = [{"bytes": b"x", "path": None}] * 3
    table(tmp_path / "train.parquet", {"image": images, "label": [0, 1, 2]})
    data = load_dataset(config(tmp_path, eval_split="train"), train=True)
    with pytest.raises(ValueError, match="none of the 1 images of class '0' is readable"):
        data.images_uint8([0])


def test_a_class_without_a_readable_image_is_named(tmp_path: Path) -> None:
    folder = class_folders(tmp_path, names=("cat", "dog"), count=3)
    for file in (folder / "dog").iterdir():
        file.write_bytes(b"")
    data = load_dataset(config(folder, eval_split="train"), train=True)
    data.images_uint8(range(3))
    with pytest.raises(ValueError, match="none of the 3 images of class 'dog' is readable"):
        data.images_uint8([4])


def test_small_images(tmp_path: Path) -> None:
    images = [*cells(range(1)), *cells(range(7, 8), size=(9, 20))]
    table(tmp_path / "train.parquet", {"image": images, "label": [0, 1]})
    strict = load_dataset(config(tmp_path, resize=None, eval_split="train"), train=True)
    assert strict.images_uint8([0]).shape == (1, 3, 12, 12)
    with pytest.raises(ValueError, match=r"image 1 of .* is 9 x 20 pixels.* image_size 12"):
        strict.images_uint8([1])
    enlarged = load_dataset(config(tmp_path, eval_split="train"), train=True)
    assert enlarged.images_uint8([1]).unique().tolist() == [7]


def test_centre_crop_and_resize(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 14:26] = 255
    image = {"bytes": png(Image.fromarray(pixels)), "path": None}
    table(tmp_path / "train.parquet", {"image": [image], "label": [0]})
    options = {"split": "train", "eval_split": "train"}
    plain = load_dataset(config(tmp_path, resize=None, **options), train=True)
    assert plain.images_uint8([0]).unique().tolist() == [255]  # columns 14 to 26
    larger = load_dataset(config(tmp_path, resize=2.0, **options), train=True)  # 24 x 48
    bright = (larger.images_uint8([0])[0, 0] > 128).sum(dim=1)
    assert bright.tolist() == [12] * 12  # of a stripe that is 14.4 wide


def test_random_crops_and_flips_come_from_the_key(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(0, 240, 8, dtype=np.uint8)[None, :, None], 30, 0).repeat(3, 2)
    image = {"bytes": png(Image.fromarray(ramp)), "path": None}
    table(tmp_path / "train.parquet", {"image": [image], "label": [0]})
    options = {"resize": None, "eval_split": "train"}
    data = load_dataset(config(tmp_path, crop="random", flip=True, **options), train=True)
    keys = hash_integers(torch.arange(200))
    images = data.read([0] * 200, keys).images
    again = data.read([0] * 3, keys[5:8]).images
    assert torch.equal(images[5:8], again)
    rising = images[:, 0, 0, 0] < images[:, 0, 0, -1]
    assert 60 < int(rising.sum()) < 140
    starts = images[rising, 0, 0, 0].unique() // 8
    assert starts.tolist() == list(range(19))  # every place of a 12-crop in 30
    evaluated = load_dataset(config(tmp_path, crop="random", flip=True, **options), train=False)
    assert torch.equal(evaluated.read([0] * 200, keys).images[7], data.images_uint8([0])[0])


def test_cache_does_not_change_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = load_dataset(DataConfig(image_size=8, flip=True), train=True)
    monkeypatch.setattr("lambda24.common.data.dataset.CACHE_BYTES", 0)
    decoded = load_dataset(DataConfig(image_size=8, flip=True), train=True)
    for _ in range(2):
        a, b = (next(build_loader(data, batch_size=64, seed=1)) for data in (kept, decoded))
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
    mirrored = load_dataset(DataConfig(image_size=8), train=True)
    assert not torch.equal(next(build_loader(mirrored, batch_size=64, seed=1)).images, a.images)


def test_max_images() -> None:
    few = load_dataset(DataConfig(image_size=8, max_images=100), train=True)
    assert len(few) == 100
    assert len(few.labels.unique()) == 10


def test_item() -> None:
    data = load_dataset(DataConfig(image_size=8), train=True)
    sample = data[1, 5]
    assert torch.equal(to_uint8(sample.image), data.images_uint8([5])[0])
    assert sample.label == int(data.labels[5])
    assert sample.key != data[0, 5].key


def test_folder_of_parquet_files_is_read_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where one file is called like a split; a table of another kind is named and ignored."""
    table(tmp_path / "train-0.parquet", {"image": cells(range(3)), "label": [0, 1, 0]})
    table(tmp_path / "part-1.parquet", {"image": cells(range(3, 8)), "label": [0, 1, 0, 1, 1]})
    (tmp_path / "stray.json").write_text('[{"a": 1}]')
    train = load_dataset(config(tmp_path, eval_split="train"), train=True)
    assert sorted(train.images_uint8(range(8))[:, 0, 0, 0].tolist()) == list(range(8))
    assert any("stray.json" in message for message in caplog.messages)


def test_files_of_no_split_beside_splits_are_refused(tmp_path: Path) -> None:
    for name in ("train-0", "test-0", "part-1"):
        table(tmp_path / f"{name}.parquet", {"image": cells(range(3)), "label": [0, 1, 0]})
    with pytest.raises(ValueError, match=r"part-1\.parquet belong to none of the splits"):
        load_dataset(config(tmp_path), train=True)


def test_columns_of_usual_names_come_first(tmp_path: Path) -> None:
    """A mask before the image and a superclass before the label are not taken."""
    import datasets

    names = datasets.ClassLabel(names=["a", "b"])
    features = {"mask": datasets.Image(), "superclass": names}
    features |= {"image": datasets.Image(), "label": names}
    columns = {"mask": cells(range(90, 94)), "superclass": [0, 0, 0, 0]}
    columns |= {"image": cells(range(4)), "label": [0, 1, 0, 1]}
    rows = datasets.Dataset.from_dict(columns, datasets.Features(features))
    (tmp_path / "named").mkdir()
    rows.to_parquet(tmp_path / "named" / "train.parquet")
    train = load_dataset(config(tmp_path / "named", eval_split="train"), train=True)
    assert train.images_uint8(range(4))[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert train.labels.tolist() == [0, 1, 0, 1]
    (tmp_path / "other").mkdir()
    rows.rename_column("image", "photo").to_parquet(tmp_path / "other" / "train.parquet")
    with pytest.raises(ValueError, match=r"image_key: .* has 2 image columns \(mask, photo\)"):
        load_dataset(config(tmp_path / "other"), train=True)


def test_plain_label_column_comes_before_another_class_column(tmp_path: Path) -> None:
    import datasets

    features = {"superclass": datasets.ClassLabel(names=["a", "b"]), "image": datasets.Image()}
    columns = {"superclass": [0, 0, 0, 0], "image": cells(range(4)), "label": [0, 1, 2, 1]}
    features |= {"label": datasets.Value("int64")}
    rows = datasets.Dataset.from_dict(columns, datasets.Features(features))
    rows.to_parquet(tmp_path / "train.parquet")
    train = load_dataset(config(tmp_path, eval_split="train"), train=True)
    assert train.labels.tolist() == [0, 1, 2, 1]

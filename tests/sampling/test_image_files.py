from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lambda24.common.data.dataset import load_dataset
from lambda24.common.data.settings import DataConfig
from lambda24.sampling.image_files import is_saved, open_images, read_labels, save_png, write_npz


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


def test_folder_and_npz_hold_the_same_images(pixels: np.ndarray, tmp_path: Path) -> None:
    for index, array in enumerate(pixels):
        path = tmp_path / "images" / f"class_{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    (tmp_path / "images" / "notes.txt").write_text("ignored")
    np.savez(tmp_path / "images.npz", pixels[[0, 2, 4, 1, 3]])
    folder, packed = (open_images(tmp_path / name, 16) for name in ("images", "images.npz"))
    assert len(folder) == len(packed) == 5
    expected = torch.from_numpy(pixels[[4, 1]]).permute(0, 3, 1, 2)
    torch.testing.assert_close(folder.images_uint8([2, 3]), expected)
    torch.testing.assert_close(packed.images_uint8([2, 3]), expected)


def test_bad_folders_are_named(pixels: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a folder"):
        open_images(tmp_path / "missing", 16)
    with pytest.raises(ValueError, match="holds no images"):
        open_images(tmp_path, 16)
    Image.fromarray(pixels[0, :, :8]).save(tmp_path / "narrow.png")
    (tmp_path / "zebra.png").write_bytes(b"rubbish")
    source = open_images(tmp_path, 16)
    with pytest.raises(ValueError, match=r"narrow\.png has 8 x 16 pixels, the reference 16 x 16"):
        source.images_uint8([0])
    with pytest.raises(ValueError, match=r"zebra\.png is not a readable image"):
        source.images_uint8([1])


def test_bad_npz_files_are_named(pixels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, images=pixels)
    with pytest.raises(ValueError, match=r"no arr_0, only images\.npy"):
        open_images(path, 16)
    np.savez(path, pixels.astype(np.float32))
    with pytest.raises(ValueError, match=r"got float32 \(5, 16, 16, 3\)"):
        open_images(path, 16)
    np.savez(path, pixels)
    with pytest.raises(ValueError, match=r"uint8 \(N, 32, 32, 3\)"):
        open_images(path, 32)
    path.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"images\.npz is not a readable npz file"):
        open_images(path, 16)
    np.savez(path, np.array([object()]))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        open_images(path, 16)


def test_labels_come_from_arr_1(pixels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, pixels)
    assert read_labels(path) is None
    assert read_labels(tmp_path) is None
    np.savez(path, pixels, np.array([3, 1, 4, 1, 5], dtype=np.uint8))
    labels = read_labels(path)
    assert labels is not None
    assert labels.tolist() == [3, 1, 4, 1, 5]
    np.savez(path, pixels, np.zeros((5, 10)))
    with pytest.raises(ValueError, match=r"integers \(N,\), got float64 \(5, 10\)"):
        read_labels(path)


def test_labels_of_a_folder_come_from_its_pngs(pixels: np.ndarray, tmp_path: Path) -> None:
    assert read_labels(tmp_path) is None
    for index, label in enumerate((3, 1, 4)):
        path = tmp_path / f"{index % 2}" / f"{index}.png"  # sorted: 0, 2, 1
        save_png(Image.fromarray(pixels[index]), path, {"label": label})
    labels = read_labels(tmp_path)
    assert labels is not None
    assert labels.tolist() == [3, 4, 1]
    order = [pixels[index] for index in (0, 2, 1)]
    expected = torch.from_numpy(np.stack(order)).permute(0, 3, 1, 2)
    assert torch.equal(open_images(tmp_path, 16).images_uint8(range(3)), expected)
    for settings in ({}, {"label": "cat"}, {"label": True}):
        save_png(Image.fromarray(pixels[3]), tmp_path / "one.png", settings)
        assert read_labels(tmp_path) is None
    (tmp_path / "one.png").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"one\.png is not a readable image"):
        read_labels(tmp_path)


def test_png_remembers_its_settings(pixels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "one.png"
    assert not is_saved(path, {"top_k": 3})
    save_png(Image.fromarray(pixels[0]), path, {"top_k": 3})
    assert is_saved(path, {"top_k": 3})
    assert [file.name for file in path.parent.iterdir()] == ["one.png"]
    assert torch.equal(
        open_images(path.parent, 16).images_uint8([0])[0],
        torch.from_numpy(pixels[0]).permute(2, 0, 1),
    )
    with pytest.raises(ValueError, match=r"one\.png was made with other settings"):
        is_saved(path, {"top_k": 4})
    path.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="not a readable image"):
        is_saved(path, {"top_k": 3})


def test_npz_is_shuffled_with_its_labels(pixels: np.ndarray, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for array, path in zip(pixels, paths, strict=True):
        Image.fromarray(array).save(path)
    orders = []
    for seed in (0, 0, 1):
        out = tmp_path / "out" / "images.npz"
        write_npz(paths, [10, 11, 12, 13, 14], out, seed=seed)
        with np.load(out) as packed:
            order = packed["arr_1"] - 10
            assert packed["arr_0"].dtype == np.uint8
            assert np.array_equal(packed["arr_0"], pixels[order])
        orders.append(order.tolist())
        labels = read_labels(out)
        assert labels is not None
        assert sorted(labels.tolist()) == [10, 11, 12, 13, 14]
        assert len(open_images(out, 16)) == 5
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])
    with pytest.raises(ValueError, match="got 5 and 4"):
        write_npz(paths, [1, 2, 3, 4], out)


def test_images_are_those_that_training_reads(tmp_path: Path) -> None:
    """Every kind of pixels and of file, and no others: decoded once, by one function."""
    folder, random = tmp_path / "images" / "cat", np.random.default_rng(0)
    folder.mkdir(parents=True)
    rgba = Image.fromarray(random.integers(0, 256, (8, 8, 4), np.uint8))
    deep = Image.fromarray(random.integers(0, 65536, (8, 8)).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba.save(folder / "a.png")
    deep.save(folder / "b.png")
    rgba.convert("RGB").save(folder / "c.jpg", exif=exif)
    rgba.convert("RGB").save(folder / "d.tif")
    (folder / ".hidden").mkdir()
    rgba.save(folder / ".hidden" / "e.png")
    data = load_dataset(
        DataConfig(path=str(tmp_path / "images"), image_size=8, eval_split="train"), train=True
    )
    found = open_images(tmp_path / "images", 8)
    assert len(found) == len(data) == 4
    assert torch.equal(found.images_uint8(range(4)), data.images_uint8(range(4)))


def test_a_truncated_image_is_drawn_again(tmp_path: Path) -> None:
    """Its header, with the settings, is whole; its pixels are not."""
    path, settings = tmp_path / "one.png", {"label": 1}
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    save_png(Image.fromarray(noise), path, settings)
    assert is_saved(path, settings)
    content = path.read_bytes()
    for end in (len(content) - 60, len(content) // 2):
        path.write_bytes(content[:end])
        assert not is_saved(path, settings)

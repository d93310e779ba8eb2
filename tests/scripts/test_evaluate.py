import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from lambda24.sampling.evaluation.result import without_negative_zero
from lambda24.sampling.pipeline import Pipeline
from lambda24.scripts import evaluate_generator, evaluate_images, evaluate_tokenizer, sample

CONFIGS = Path(__file__).parents[2] / "configs" / "evaluation"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained pipeline for digits of 16 pixels."""
    # Processes of a test below run this file without pytest, which finds the package of tests.
    from tests.sampling.tiny_pipeline import tiny_pipeline

    path = tmp_path_factory.mktemp("models") / "pipeline"
    tiny_pipeline((), num_classes=10, scales=(1, 2)).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_evaluate_generator(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [
        "data.image_size=16",
        "data.max_images=60",
        "reference=eval",
        "evaluation.num_images=30",
        "evaluation.metrics.kid_subset_size=20",
        "evaluation.metrics.extractor.size=32",
        "evaluation.sampling.guidance_scale=1.5",
    ]
    evaluate_generator.main([str(folder), str(CONFIGS / "digits.yaml"), *overrides])
    result = json.loads((folder / "evaluation.json").read_text())
    assert result["gfid"] > 0
    assert result["protocol"]["model"] == Pipeline.from_pretrained(folder).digest()
    assert result["protocol"]["reference"]["num_images"] == 60
    assert result["protocol"]["reference"]["part"] == "eval"
    assert result["protocol"]["sampling"]["guidance_scale"] == 1.5
    printed = capsys.readouterr().out
    assert f"| {result['gfid']:.2f} |" in printed
    # The same seeds without guidance, on its own row and in the file.
    plain = result["without_guidance"]
    assert plain["protocol"]["sampling"]["guidance_scale"] == 1
    assert plain["protocol"]["seeds"] == result["protocol"]["seeds"]
    assert plain["gfid"] != result["gfid"]
    row = next(line for line in printed.splitlines() if "the same without guidance" in line)
    assert f"| {plain['gfid']:.2f} | - | " in row
    evaluate_generator.main(
        [str(folder), str(CONFIGS / "digits.yaml"), *overrides, "without_guidance=false"]
    )
    alone = json.loads((folder / "evaluation.json").read_text())
    assert "without_guidance" not in alone
    assert alone["gfid"] == result["gfid"]
    evaluate_generator.main([str(folder), str(CONFIGS / "digits.yaml"), *overrides[:-1]])
    unguided = json.loads((folder / "evaluation.json").read_text())
    assert "without_guidance" not in unguided
    assert unguided["gfid"] == plain["gfid"]
    assert "warning: 30 generated images for 1280 features" in printed


def test_counts_that_cannot_work_are_refused_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lambda24.sampling.evaluation.protocol.sample_features", lambda *a: pytest.fail("sampled")
    )
    data = ["data.path=digits", "data.eval_split=null", "data.image_size=16"]
    few = [str(folder), str(CONFIGS / "cifar10.yaml"), *data, "evaluation.num_images=500"]
    with pytest.raises(ValueError, match="kid_subset_size 1000 exceeds num_images 500"):
        evaluate_generator.main(few)
    few += ["evaluation.metrics.kid_subset_size=20", "evaluation.num_images=60"]
    with pytest.raises(ValueError, match=r"num_resamples 50 leaves .* num_images 60"):
        evaluate_generator.main(few)


def test_evaluate_tokenizer_finds_the_tokenizer_of_a_pipeline(folder: Path, tmp_path: Path) -> None:
    overrides = [
        "data.image_size=16",
        "data.max_images=20",
        "evaluation.extractor.size=32",
        f"out={tmp_path / 'result.json'}",
    ]
    evaluate_tokenizer.main([str(folder), str(CONFIGS / "digits_tokenizer.yaml"), *overrides])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["protocol"]["num_images"] == 20
    assert result["psnr"] > 0
    assert len(result["scales"]) == 2
    assert not (folder / "reconstruction.json").exists()


def test_a_folder_without_a_pipeline_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a pipeline folder"):
        evaluate_generator.main([str(tmp_path), str(CONFIGS / "digits.yaml")])


def test_evaluate_images_ranks_noise_below_real_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", noise)
    results = {}
    for name in ("train", "eval", str(tmp_path / "noise.npz")):
        overrides = [
            "data.image_size=16",
            "data.max_images=80",
            "evaluation.metrics.kid_subset_size=20",
            "evaluation.metrics.extractor.size=32",
            f"out={tmp_path / 'result.json'}",
        ]
        evaluate_images.main([name, str(CONFIGS / "digits.yaml"), *overrides])
        results[Path(name).stem] = json.loads((tmp_path / "result.json").read_text())
    assert results["noise"]["gfid"] > 2 * results["eval"]["gfid"]
    assert results["noise"]["precision"] == 0
    assert results["train"]["protocol"]["num_images"] == 40
    assert results["train"]["protocol"]["reference"]["num_images"] == 40
    assert results["eval"]["protocol"]["num_images"] == 80
    counts = {name: result["protocol"]["images_per_class"] for name, result in results.items()}
    assert counts["noise"] is None
    assert 0 < counts["eval"][0] <= 8 <= counts["eval"][1]  # 80 real images of 10 classes
    for name, result in results.items():
        is_said = any("not known" in text for text in result["protocol"]["warnings"])
        assert is_said == (name == "noise")
    printed = capsys.readouterr().out
    assert "| noise.npz |" in printed
    assert "warning: the classes of the images are not known" in printed


def _arguments(folder: Path, images: str) -> list[str]:
    """Arguments of evaluate_images for images in `folder`, where the result goes, too."""
    return [
        str(folder / images),
        str(CONFIGS / "digits.yaml"),
        "data.image_size=16",
        "data.max_images=60",
        "evaluation.metrics.kid_subset_size=20",
        "evaluation.metrics.extractor.size=32",
        f"out={folder / 'result.json'}",
    ]


def test_labels_of_an_npz_must_be_equally_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    arguments = _arguments(tmp_path, "images.npz")
    np.savez(tmp_path / "images.npz", pixels, np.array([0] * 13 + list(range(10)) * 2 + [1] * 7))
    with pytest.raises(ValueError, match="classes have 2 to 15 images"):
        evaluate_images.main(arguments)
    evaluate_images.main([*arguments, "evaluation.allow_unequal_classes=true"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["protocol"]["images_per_class"] == [2, 15]
    assert "warning: 40 generated images for 1280 features" in capsys.readouterr().out
    np.savez(tmp_path / "images.npz", pixels, np.arange(40) % 11)
    with pytest.raises(ValueError, match=r"lie in \[0, 9\].* got 0 to 10"):
        evaluate_images.main(arguments)
    np.savez(tmp_path / "images.npz", pixels, np.arange(30) % 10)
    with pytest.raises(ValueError, match="has 40 images, 30 labels"):
        evaluate_images.main(arguments)


def test_labels_of_sampled_files_must_be_equally_many(folder: Path, tmp_path: Path) -> None:
    sample.main([str(folder), "--count", "26", "--folder", str(tmp_path / "images")])
    arguments = _arguments(tmp_path, "images")
    with pytest.raises(ValueError, match="classes have 2 to 3 images"):
        evaluate_images.main(arguments)
    evaluate_images.main([*arguments, "evaluation.allow_unequal_classes=true"])
    protocol = json.loads((tmp_path / "result.json").read_text())["protocol"]
    assert protocol["images_per_class"] == [2, 3]
    assert not any("not known" in text for text in protocol["warnings"])
    (tmp_path / "few").mkdir()
    for path in sorted((tmp_path / "images").iterdir())[:10]:
        path.rename(tmp_path / "few" / path.name)
    with pytest.raises(ValueError, match="kid_subset_size 20 exceeds num_images 10"):
        evaluate_images.main([str(tmp_path / "few"), *arguments[1:]])


def measure_both(folder: Path, out: Path) -> None:
    common = ["data.image_size=16", "data.max_images=31"]
    evaluate_tokenizer.main(
        [
            str(folder),
            str(CONFIGS / "digits_tokenizer.yaml"),
            *common,
            "evaluation.extractor.size=32",
            "num_pictures=2",
            f"out={out / 'tokenizer.json'}",
        ]
    )
    evaluate_generator.main(
        [
            str(folder),
            str(CONFIGS / "digits.yaml"),
            *common,
            "reference=eval",
            "evaluation.num_images=21",
            "evaluation.allow_unequal_classes=true",
            "evaluation.metrics.kid_subset_size=20",
            "evaluation.metrics.extractor.size=32",
            f"out={out / 'generator.json'}",
        ]
    )


def one_of_two(rank: int, folder: Path, out: Path, port: int) -> None:
    """What `accelerate launch` gives a process."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    os.environ |= address | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    measure_both(folder, out)


def test_two_gloo_processes_measure_what_one_does(folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    measure_both(folder, one)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__]
    workers = [
        subprocess.Popen([*command, str(rank), folder, two, str(port)], env=environment)
        for rank in range(2)
    ]
    try:
        assert [worker.wait(240) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    for name in ("tokenizer", "generator"):
        alone, together = (json.loads((path / f"{name}.json").read_text()) for path in (one, two))
        assert together["protocol"]["num_images"] == (31 if name == "tokenizer" else 21)
        for key in ("psnr", "perceptual", "rfid", "gfid", "inception_score", "recall", "kid_mean"):
            if key in alone:
                assert together[key] == pytest.approx(alone[key], rel=1e-3, abs=1e-7), key
        for a, b in zip(alone.get("scales", ()), together.get("scales", ()), strict=True):
            assert b == pytest.approx(a, rel=1e-3)
    assert (two / "tokenizer_prefixes.png").is_file()


if __name__ == "__main__":
    one_of_two(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))


def test_two_sets_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All images of either, flat or in class folders; a set against itself is at no distance."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        for folder in (tmp_path / "flat", tmp_path / "classes" / f"c{number % 3}"):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:02}.png")
    few = ["extractor.size=32", "neighbors=2", "density_neighbors=2"]
    evaluate_images.main(["flat", "classes", *few])
    shown = capsys.readouterr().out
    assert "flat: 12 images; classes: 12; 16 x 16 pixels, subsets of KID 12" in shown
    assert "| flat | 0.00 |" in shown
    result = json.loads((tmp_path / "flat_against_classes.json").read_text())
    assert abs(result["gfid"]) < 1e-6
    assert result["protocol"]["reference"]["num_images"] == 12
    np.savez("noise.npz", random.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    evaluate_images.main(["noise.npz", "flat", *few, "out=noise.json"])
    assert json.loads((tmp_path / "noise.json").read_text())["gfid"] > 1
    Image.fromarray(pixels[0, :8]).save(tmp_path / "flat" / "00.png")
    with pytest.raises(ValueError, match=r"must be square, the first is \(16, 8\)"):
        evaluate_images.main(["classes", "flat", *few])


@pytest.mark.parametrize(("text", "shown"), [("-0.00", "0.00"), ("-0.01", "-0.01"), ("0.0", "0.0")])
def test_no_negative_zero(text: str, shown: str) -> None:
    assert without_negative_zero(text) == shown

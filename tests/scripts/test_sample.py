"""The sampling program."""

import copy
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lambda24.generator.model import NextScaleGenerator
from lambda24.sampling.image_files import read_labels
from lambda24.sampling.options import parse_labels, parse_seeds, sampling_config
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.ramps import LinearRamp
from lambda24.sampling.settings import SamplingConfig
from lambda24.scripts.sample import Job, main
from tests.sampling.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline(("cat", "a/b", "2"), num_classes=3, scales=(1, 2))


@pytest.fixture(scope="module")
def folder(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "model"
    pipeline.save_pretrained(path)
    return path


def test_grid_and_files(folder: Path, tmp_path: Path, pipeline: Pipeline):
    out, files = tmp_path / "deep" / "grid.png", tmp_path / "files"
    arguments = [str(folder), "--labels", "cat,a/b", "--seeds", "4:7", "--batch-size", "4"]
    main([*arguments, "--out", str(out), "--folder", str(files), "top_k=3"])
    with Image.open(out) as grid:
        width, height = grid.size
    assert width > 3 * 64  # three columns and the names
    assert 2 * 64 <= height < 3 * 64
    names = [f"{label}_seed{seed}.png" for label in ("a_b", "cat") for seed in (4, 5, 6)]
    assert sorted(path.name for path in files.iterdir()) == names
    expected = pipeline(["a/b"], [5], top_k=3)[0]
    with Image.open(files / "a_b_seed5.png") as image:
        assert image.tobytes() == expected.tobytes()


def test_labels_are_names_numbers_or_all(pipeline: Pipeline):
    assert parse_labels("cat, a/b", pipeline) == [0, 1]
    assert parse_labels("#1,#3", pipeline) == [1, 3]  # 3 is the null class
    assert parse_labels("2", pipeline) == [2]
    assert parse_labels("all", pipeline) == [0, 1, 2]
    with pytest.raises(ValueError, match="unknown class 'cta'; closest: cat"):
        parse_labels("cta", pipeline)


def test_what_would_be_drawn_twice_to_one_file_is_refused(pipeline: Pipeline):
    for text in ("cat,cat", "a/b,cat,#0"):
        with pytest.raises(ValueError, match="class cat more than once"):
            parse_labels(text, pipeline)
    for text in ("1,1", "0:3,1"):
        with pytest.raises(ValueError, match=r"seeds '.*' have 1 more than once"):
            parse_seeds(text)


def test_seeds_are_ranges_and_lists():
    assert parse_seeds("0:3") == [0, 1, 2]
    assert parse_seeds("7") == [7]
    assert parse_seeds("1, 5,10:12") == [1, 5, 10, 11]
    for text in ("a", "1:", "-1", ""):
        with pytest.raises(ValueError, match="must look like"):
            parse_seeds(text)
    with pytest.raises(ValueError, match="empty range"):
        parse_seeds("3:3")


def test_settings_come_from_the_folder_a_file_and_overrides(tmp_path: Path):
    default = SamplingConfig(guidance_scale=3.0, top_k=5)
    assert sampling_config(default, None, []) == default
    ramp = "guidance_scale={kind: linear, start: 1, end: 3}"
    changed = sampling_config(default, None, [ramp, "top_k=null"])
    assert changed == SamplingConfig(guidance_scale=LinearRamp(start=1.0, end=3.0))
    file = tmp_path / "sampling.yaml"
    file.write_text("top_p: 0.9\n")
    assert sampling_config(default, str(file), ["top_k=7"]) == SamplingConfig(top_p=0.9, top_k=7.0)
    with pytest.raises(ValueError, match="expected key=value"):
        sampling_config(default, None, ["top_k"])
    with pytest.raises(ValueError, match="topk"):
        sampling_config(default, None, ["topk=7"])
    with pytest.raises(ValueError, match="min_p"):
        sampling_config(default, None, ["min_p=a lot"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "cta"], "unknown class 'cta'; closest: cat"),
        (["--labels", "#7"], r"labels must be in \[0, 3\]"),
        (["top_k=76"], r"top_k must be an integer in \[1, 75\], got 76"),
        (["temperature=-1"], "temperature must be positive, got -1"),
        (["top_p=1.5"], r"top_p must be in \(0, 1\], got 1.5"),
        (["guidance_scale=[1, 2, 3]"], "guidance_scale lists 3 values, but there are 2 scales"),
        (["temperature=1e-40"], r"temperature must be in \[1e-05, 100000\], got 1e-40"),
        (["--count", "0"], "--count must be at least 1, got 0"),
        (["--count", "10000001"], "--count must be at most 10000000, got 10000001"),
        (["--count", "8", "--seeds", "4294967295"], "seeds must be in .* got 4294967302"),
        (["--out", "grid.pgn"], "--out grid.pgn: no image can be written as '.pgn'"),
        (["--out", "grid"], "--out grid: no image can be written as ''"),
        (["--batch-size", "-1", "--folder", "x"], "--batch-size must be at least 1, got -1"),
        (["--npz", "images.npz"], "there is none"),
        (["--npz", "images.png", "--folder", "x"], "--npz must be .* .npz, got images.png"),
        (
            ["--npz", "a.npz", "--folder", "x", "--shuffle-seed", "-1"],
            "--shuffle-seed must be at least 0, got -1",
        ),
        (["--folder", __file__], "--folder .* is a file"),
        (["--keep-scales", "1"], "none given"),
    ],
)
def test_mistakes_are_named(
    folder: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lambda24.sampling.pipeline.to_pil", lambda *a: pytest.fail("drawn"))
    monkeypatch.setattr(Job, "fill", lambda *a, **k: pytest.fail("drawn"))
    with pytest.raises(ValueError, match=message):
        main([str(folder), "--seeds", "0", *arguments])


def test_settings_are_checked_before_anything_is_drawn(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Job, "draw", lambda *a, **k: pytest.fail("drawn"))
    monkeypatch.setattr(Job, "settings", lambda *a: pytest.fail("weights read"))
    with pytest.raises(ValueError, match="top_p must be in"):
        main([str(folder), "--folder", str(tmp_path / "files"), "top_p=1.5"])
    assert not (tmp_path / "files").exists()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_to_edit_are_refused_by_name(folder: Path, tmp_path: Path):
    given, notes, huge = (tmp_path / name for name in ("given.png", "notes.png", "huge.png"))
    Image.new("RGB", (16, 16)).save(given)
    notes.write_text("no image")
    Image.new("1", (10_000, 10_000)).save(huge)
    missing = tmp_path / "missing.png"
    for path, message in (
        (notes, "notes.png is not an image"),
        (huge, "huge.png has 10000 x 10000 = 100.0 million pixels, at most 50 million are taken"),
        (missing, "missing.png is not a readable image"),
    ):
        for option, files in (
            ("--edit", ["--edit", path, "--keep-scales", "1"]),
            ("--mask", ["--edit", given, "--mask", path]),
        ):
            with pytest.raises(ValueError, match=f"^{option} {path}: {message}"):
                main([str(folder), "--labels", "cat", "--seeds", "0", *map(str, files)])


def test_more_images_than_can_be_listed_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lambda24.scripts.sample.MAX_IMAGES", 20)
    with pytest.raises(ValueError, match="3 labels with 8 seeds are more than 20 images"):
        main([str(folder), "--seeds", "0:8"])


def test_many_images_resume_and_are_packed(
    folder: Path, tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
):
    files, packed = tmp_path / "files", tmp_path / "images.npz"
    arguments = [str(folder), "--labels", "cat,2", "--seeds", "10", "--count", "5"]
    arguments += ["--folder", str(files), "--npz", str(packed)]
    main(arguments)
    names = {f"{'cat' if i % 2 == 0 else '2'}_seed{10 + i}.png" for i in range(5)}
    assert {path.name for path in files.iterdir()} == names
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    with np.load(packed) as archive:
        assert archive["arr_0"].shape == (5, 16, 16, 3)
        assert sorted(archive["arr_1"].tolist()) == [0, 0, 0, 2, 2]
        chosen = archive["arr_0"][archive["arr_1"] == 2]
    expected = [np.asarray(image) for image in pipeline([2, 2], [11, 13])]
    assert {image.tobytes() for image in chosen} == {image.tobytes() for image in expected}
    lost = files / "2_seed13.png"
    lost.unlink()
    drawn: list[int] = []
    draw = Job.draw
    monkeypatch.setattr(
        Job,
        "draw",
        lambda job, pairs, **k: drawn.extend(s for _, s in pairs) or draw(job, pairs, **k),
    )
    main(arguments)
    assert drawn == [13]
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before
    with pytest.raises(ValueError, match="was made with other settings"):
        main([*arguments, "top_k=2"])
    other = copy.deepcopy(pipeline)
    next(other.generator.parameters()).data.add_(1)  # trained on, say
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="was made with other settings"):
        main([str(tmp_path / "other"), *arguments[1:]])


# What `accelerate launch` starts; the others must outwait a main process that packs for an hour.
PROGRAM = """
import datetime, sys
import torch
from torch.distributed import distributed_c10d as distributed
from lambda24.scripts.sample import main
main(sys.argv[1:])
backend = distributed._get_default_group()._get_backend(torch.device("cpu"))
assert backend.options._timeout > datetime.timedelta(hours=1), backend.options._timeout
"""


def test_two_gloo_processes_draw_what_one_draws(folder: Path, tmp_path: Path):
    def arguments(name: str) -> list[str]:
        files, packed = tmp_path / name, tmp_path / f"{name}.npz"
        outputs = ["--folder", str(files), "--npz", str(packed), "--out", f"{files}.png"]
        return [str(folder), "guidance_scale=2.0", "--count", "7", "--seeds", "3", *outputs]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments("two")],
            env={**environment, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        main(arguments("one"))  # meanwhile
        assert [worker.wait(600) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert len(one) == 7
    assert one == two
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with np.load(tmp_path / "one.npz") as a, np.load(tmp_path / "two.npz") as b:
        assert np.array_equal(a["arr_0"], b["arr_0"])
        assert np.array_equal(a["arr_1"], b["arr_1"])


def test_files_know_their_labels(folder: Path, tmp_path: Path):
    main([str(folder), "--labels", "2,cat", "--seeds", "0:2", "--folder", str(tmp_path / "x")])
    labels = read_labels(tmp_path / "x")
    assert labels is not None
    assert labels.tolist() == [2, 2, 0, 0]  # files are sorted by name


def test_classes_of_one_name_get_files_of_their_own(pipeline: Pipeline):
    twins = NextScaleGenerator(
        pipeline.generator.config, pipeline.generator.spec, ("crane", "crane", "heron")
    )
    job = Job(Pipeline(pipeline.image_tokenizer, twins), SamplingConfig(), 4, None)
    paths = job.paths([(0, 1), (1, 1), (2, 1)], Path())
    assert [path.name for path in paths] == [
        "crane-0_seed1.png",
        "crane-1_seed1.png",
        "heron_seed1.png",
    ]


def test_edit_with_a_mask(folder: Path, tmp_path: Path, pipeline: Pipeline):
    given, mask = Image.new("RGB", (24, 20), "red"), Image.new("L", (24, 20), 0)
    given.save(tmp_path / "given.png")
    mask.save(tmp_path / "mask.png")
    arguments = [str(folder), "--labels", "cat", "--seeds", "1", "--folder", str(tmp_path / "out")]
    arguments += ["--edit", str(tmp_path / "given.png"), "--mask", str(tmp_path / "mask.png")]
    main(arguments)
    fitted = given.resize((16, 16))  # one colour: however it is cropped
    expected = pipeline.edit([fitted], [0], [1], keep_scales=2)[0]
    with Image.open(tmp_path / "out" / "cat_seed1.png") as image:
        assert image.tobytes() == expected.tobytes()
    mask.resize((8, 8)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"size of the image \(24, 20\), got \(8, 8\)"):
        main(arguments)
    with pytest.raises(ValueError, match=r"--edit .*given\.png keeps nothing of the image"):
        main(arguments[:-2])

from __future__ import annotations

import pytest
import torch

from scripts import benchmark
from tokenizer.lattices import search_benchmark
from tokenizer.lattices.search_benchmark import Exactness


def test_search_prints_a_line_per_method(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_benchmark, "TILES", ((256, 1024),))
    threads = torch.get_num_threads()
    arguments = ["search", "--sizes", "40", "--repeats", "1", "--brute-vectors", "20"]
    benchmark.main([*arguments, "--threads", str(threads)])
    lines = capsys.readouterr().out.splitlines()
    assert f"{threads} threads" in lines[0]
    assert "matrix product" in lines[1]
    rows = {line.split("  ")[0]: line for line in lines[2:]}
    assert "structured, eager" in rows
    tiles = next(line for name, line in rows.items() if name.startswith("tiles of"))
    assert "(20 of 40, scaled)" in tiles
    assert tiles.split(" x ")[-2].split()[-1] == "1.0"  # the ratio of the reference to itself
    assert any(name.startswith("half the codes") for name in rows)


def test_exactness_sums_by_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["search", "--exactness", "70"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(": gaussian")
    integers = [line for line in lines if line.startswith("integers")]
    assert integers
    assert all("10 vectors,      0 other indices, loss <= 0.0e+00" in line for line in integers)


def test_exactness_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [Exactness("gaussian", "eager", 5, 1, loss) for loss in (0.0, 2e-6, 0.0)]
    monkeypatch.setattr(benchmark, "exactness", lambda count: parts)
    with pytest.raises(SystemExit, match=r"not exact: a product is 2\.0e-06 below"):
        benchmark.main(["search", "--exactness", "15"])


def test_a_command_is_needed() -> None:
    with pytest.raises(SystemExit):
        benchmark.main([])


def test_codes_prints_known_geometry(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["codes", "e8", "--samples", "64"])
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    assert [cell.strip() for cell in row[1:6]] == ["e8", "8", "240", "1.0000", "56"]


def test_head_prints_a_line_per_head(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["head", "--width", "4", "--tokens", "8", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["full", "lattice", "categorical,"]


def test_train_step_shows_phases_and_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--shapes", "mini-32", "--depth", "1", "--images", "1", "--repeats", "1"]
    benchmark.main(["train-step", *shape, "--precisions", "fp32", "bf16"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "images of" in line] == [
        "mini-32, fp32, 1 images of 85 tokens",
        "mini-32, bf16, 1 images of 85 tokens",
    ]
    parts = [line.split("  ") for line in lines if line.startswith("    ")]
    assert {"trunk forward", "optimizer", "linear layers", "attention products"} <= {
        part[2] for part in parts
    }

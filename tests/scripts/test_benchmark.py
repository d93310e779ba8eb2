from __future__ import annotations

import pytest
import torch

from scripts import benchmark
from tokenizer.lattices import leech


def test_all_methods_find_the_same_codes() -> None:
    z = torch.randn(60, 24, generator=torch.Generator().manual_seed(0))
    half = benchmark.half_search(leech.codebook(torch.float32))
    assert torch.equal(half(z), leech.nearest(z))


def test_search_prints_a_line_per_method(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    arguments = ["search", "--sizes", "40", "--repeats", "1", "--brute-vectors", "20"]
    benchmark.main([*arguments, "--threads", str(threads)])
    lines = capsys.readouterr().out.splitlines()
    assert f"{threads} threads" in lines[0]
    for name, line in zip(("structured", "tiles of", "half"), lines[1:4], strict=True):
        assert name in line
    assert "scaled x2" in lines[2]


def test_exactness_counts_and_measures() -> None:
    results = {name: values for name, *values in benchmark.exactness(70)}
    assert len(results) == 7
    assert all(count == 10 and loss <= 1e-6 for count, _, loss in results.values())
    assert results["gaussian"][1] == 0
    assert results["integers"][1] == 0  # exact ties: the lowest index in both


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

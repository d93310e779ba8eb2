from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lambda24.generator.config import GeneratorConfig
from lambda24.generator.heads import CategoricalHeadConfig
from lambda24.generator.model import NextScaleGenerator
from lambda24.generator.presets import preset
from lambda24.generator.settings import GeneratorTrainingConfig
from lambda24.sampling.pipeline import Pipeline
from lambda24.scripts import benchmark
from lambda24.scripts.benchmarks import search as search_benchmark
from lambda24.scripts.benchmarks import step_costs
from lambda24.scripts.benchmarks.sample import SHAPES, build_pipeline
from lambda24.scripts.benchmarks.search import Exactness
from lambda24.tokenizer.autoencoders.cnn import CNNConfig
from lambda24.tokenizer.model import ImageTokenizer, TokenizerConfig
from lambda24.tokenizer.pyramid.multiscale import PyramidConfig
from lambda24.tokenizer.quantizers import FSQConfig


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


CONFIGS = Path(__file__).parents[2] / "configs"
STEP_COSTS = [
    "step-costs",
    str(CONFIGS / "generator" / "cifar10_leech.yaml"),
    f"tokenizer={CONFIGS / 'tokenizer' / 'cifar10_leech.yaml'}",
    *("model.depth=1", "model.width=24", "model.num_heads=1", "loop.batch_size=1"),
]


def test_step_costs_prints_a_table_of_heads_and_one_of_optimizers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: dict[str, GeneratorTrainingConfig] = {}

    def time_steps(configs: dict[str, GeneratorTrainingConfig], *rest: Any, **options: Any) -> Any:
        timed.update(configs)
        return step_costs.time_steps(configs, *rest, **options)

    monkeypatch.setattr(benchmark, "time_steps", time_steps)
    heads = ["{kind: lattice}", "{kind: coordinates}"]
    optimizers = ["{kind: adamw, clip_norm: 0.5}", "{kind: muon}"]
    benchmark.main([*STEP_COSTS, "--heads", *heads, "--optimizers", *optimizers, "--repeats", "1"])
    text = capsys.readouterr().out
    assert "1 images of 103 random tokens" in text
    assert "encoding their images" in text.splitlines()[-1]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    tables = [row for row in rows if len(row) == 5 and row[0] != "---"]
    names = [row[0] for row in tables]
    assert names == ["model.head", *heads, "optimizer", *optimizers]
    assert (tables[1][2], tables[4][2]) == ("1.000", "1.000")
    kinds = [(found.model.head.kind, found.optimizer.kind) for found in timed.values()]
    assert kinds == [
        ("lattice", "dion"),
        ("coordinates", "dion"),
        ("lattice", "adamw"),
        ("lattice", "muon"),
    ]
    # The config's, where a value has none.
    assert [found.optimizer.clip_norm for found in timed.values()] == [1.0, 1.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--heads", "{kind: leech}"], r"model\.head\.kind: got 'leech' \(allowed: 'lattice'"),
        (["--heads", "lattice"], r"model\.head: got 'lattice'"),
        (
            ["--optimizers", "{kind: dion, rank: 1}"],
            r"optimizer\.rank: got 1, but there is no such",
        ),
        (["--heads", "--optimizers"], "got 0 variants"),
    ],
)
def test_step_costs_names_what_is_wrong(options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark.main([*STEP_COSTS, *options])


def test_sample_prints_a_table_per_shape_and_batch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def tiny(name: str, depth: int) -> Pipeline:
        image_tokenizer = ImageTokenizer(
            TokenizerConfig(
                image_size=8,
                pyramid=PyramidConfig(scales=(1, 2, 4)),
                autoencoder=CNNConfig(channels=(8,), patch_size=2, groups=4),
                quantizer=FSQConfig(levels=(5, 5, 3)),
            )
        )
        shape = GeneratorConfig(
            depth=depth, width=16, num_heads=2, num_classes=5, head=CategoricalHeadConfig()
        )
        generator = NextScaleGenerator(shape, image_tokenizer.spec)
        sampling = replace(SHAPES[name][2], top_k=30, guidance_scale=2.0)
        return Pipeline(image_tokenizer, generator, sampling)

    monkeypatch.setattr(benchmark, "build_pipeline", tiny)
    arguments = ["sample", "--shapes", "var-d16", "--batches", "1", "2", "--depth", "3"]
    threads = str(torch.get_num_threads())
    benchmark.main([*arguments, "--repeats", "1", "--threads", threads])
    text = capsys.readouterr().out
    assert text.count("var-d16, depth 3, batch ") == 2
    assert text.count("reference, fp32") == 2
    assert text.count("generate, bf16") == 2
    assert "compiled" not in text


def test_sample_shapes_are_the_published_ones() -> None:
    pipeline = build_pipeline("infinity-cc-12-lattice", depth=1)
    assert pipeline.generator.spec == preset("infinity-cc-12").spec
    assert pipeline.generator.config.width == 768
    logits = pipeline.generator.head.logits(torch.randn(4, 768))
    assert 1.5 < logits.std() < 3.5

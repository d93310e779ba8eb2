"""Costs of training steps: every variant takes the step of a training, beside the others."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from lambda24.common.optim.build import DionConfig
from lambda24.common.training.launch import build_accelerator
from lambda24.generator.task import GeneratorTask
from lambda24.scripts.benchmarks.step_costs import StepCosts, build_steps, time_steps
from lambda24.tokenizer import ImageTokenizer
from tests.generator.tiny_run import data_parts

MODEL = {"depth": 1, "width": 16, "num_heads": 1, "num_classes": 10}
LOOP = {"steps": 9, "batch_size": 2, "precision": "bf16"}


def variants(make_config: Any) -> dict[str, Any]:
    heads = [
        {"kind": "lattice"},
        {"kind": "lattice", "num_mixtures": 2},
        {"kind": "coordinates"},
        {"kind": "categorical"},
    ]
    optimizers = [{"kind": "adamw"}, {"kind": "muon"}, {"kind": "dion", "rank_fraction": 0.5}]
    configs = [make_config(model=MODEL | {"head": head}, loop=LOOP) for head in heads]
    configs += [make_config(model=MODEL, loop=LOOP, optimizer=one) for one in optimizers]
    return {f"variant {number}": config for number, config in enumerate(configs)}


def test_each_variant_trains_its_own_model(
    make_config: Any, image_tokenizer: ImageTokenizer
) -> None:
    configs = variants(make_config)
    for name, step in build_steps(configs, image_tokenizer).items():
        config, generator = configs[name], step.task.generator
        assert generator.config.head == config.model.head
        if isinstance(config.optimizer, DionConfig):
            assert {group["rank_fraction"] for group in step.task.optimizer.param_groups} == {0.5}
        weights = {key: weight.clone() for key, weight in generator.named_parameters()}
        averages = {key: weight.clone() for key, weight in step.task.ema.average.named_parameters()}
        step()
        for found, before in ((generator, weights), (step.task.ema.average, averages)):
            same = [key for key, now in found.named_parameters() if torch.equal(now, before[key])]
            assert not {"blocks.0.mlp.fc2.weight", "input_projection.weight"} & set(same)
            assert not [key for key in same if key.startswith("head")], name
        assert step.done == 1


def test_a_step_is_that_of_training(make_config: Any, image_tokenizer: ImageTokenizer) -> None:
    """Bit for bit, in micro-batches: the run's loss, clipping, optimizer and average."""
    loop = {"steps": 9, "batch_size": 6, "accumulation": 2}
    config = make_config(model=MODEL, loop=loop, z_loss_weight=0.1)
    step = build_steps({"only": config}, image_tokenizer)["only"]
    assert [len(batch) for batch in step.batches] == [3, 3]
    assert not torch.equal(step.batches[0].tokens, step.batches[1].tokens)  # type: ignore[arg-type]
    task = GeneratorTask(config, image_tokenizer, *data_parts(config))
    task.prepare(build_accelerator(precision="fp32", trackers=(), run=config.run))
    for number in range(2):
        step()
        task.train_step(step.batches, number)
    for found, expected in (
        (step.task.generator, task.generator),
        (step.task.ema.average, task.ema.average),
    ):
        for name, weight in expected.named_parameters():
            assert torch.equal(found.get_parameter(name), weight), name


@pytest.mark.parametrize("self_correction", [None, {"probability": 0.5}])
def test_encoding_is_timed_beside_the_steps(
    make_config: Any,
    image_tokenizer: ImageTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    self_correction: dict[str, float] | None,
) -> None:
    replaced: list[bool] = []
    plain = ImageTokenizer.encode

    def encode(self: ImageTokenizer, images: torch.Tensor, replace: Any = None) -> Any:
        assert images.shape == (2, 3, 16, 16)
        replaced.append(replace is not None)
        return plain(self, images, replace)

    monkeypatch.setattr(ImageTokenizer, "encode", encode)
    config = make_config(model=MODEL, loop=LOOP, self_correction=self_correction)
    costs = time_steps({"only": config}, image_tokenizer, repeats=2, clock=time.perf_counter)
    assert replaced == [self_correction is not None] * 3  # once to warm up
    assert len(costs.encoding) == len(costs.seconds["only"]) == 2
    assert costs.seconds.keys() == costs.extra_bytes.keys() == {"only"}
    assert costs.images == 2


def test_rows_are_relative_to_the_first_within_rounds() -> None:
    seconds = {"a": [1.0, 2.0, 4.0], "b": [2.0, 4.0, 4.0], "c": [0.5, 0.5, 0.5]}
    costs = StepCosts(seconds, {"a": 3 << 20, "b": None, "c": 0}, [0.1], images=8)
    assert costs.table("head", {"a": "`A`", "b": "`B`"}).splitlines()[2:] == [
        "| `A` | 2000.0 | 1.000 | 4.0 | 3 |",
        "| `B` | 4000.0 | 2.000 | 2.0 | not measured |",
    ]
    assert costs.table("head", {"c": "C", "b": "B"}).splitlines()[2].startswith("| C | 500.0 | 1.0")


def test_what_cannot_be_timed_says_so(make_config: Any, image_tokenizer: ImageTokenizer) -> None:
    one = {"one": make_config(model=MODEL)}
    for configs, repeats in (({}, 3), (one, 0)):
        with pytest.raises(ValueError, match=f"got {len(configs)} variants and repeats {repeats}"):
            time_steps(configs, image_tokenizer, repeats=repeats, clock=time.perf_counter)
    loop = {"steps": 2, "batch_size": 16, "accumulation": 3}
    with pytest.raises(ValueError, match=r"batch_size 16 must be divisible by .*accumulation 3"):
        build_steps({"one": make_config(model=MODEL, loop=loop)}, image_tokenizer)

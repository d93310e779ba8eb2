"""The plan of a stage-2 run, and the shapes of the large recipes, none of which is trained here."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lambda24.common.config import from_dict, load_config, to_dict
from lambda24.common.optim.build import build_any_optimizer, state_size
from lambda24.common.training.estimate import activations_per_image
from lambda24.generator import plan
from lambda24.generator.config import GeneratorConfig
from lambda24.generator.cpu_forms.tiles import forms_of_gpus
from lambda24.generator.frozen_tokenizer import tokenizer_config
from lambda24.generator.heads import CategoricalHeadConfig, LatticeHeadConfig
from lambda24.generator.model import NextScaleGenerator
from lambda24.generator.presets import preset
from lambda24.generator.settings import GeneratorTrainingConfig
from lambda24.generator.task import TeacherForcing
from lambda24.scripts import train_generator
from lambda24.tokenizer import ImageTokenizer, TokenSpec

CONFIGS = Path(__file__).parents[2] / "configs" / "generator"
RECIPES = {
    # Name: preset, images of a step and of the whole run.
    "imagenet256_infinity_cc_12": ("infinity-cc-12", 2048, 31_300 * 2048),
    "imagenet256_infinity_cc_16": ("infinity-cc-16", 2048, 31_300 * 2048),
    "imagenet256_infinity_cc_24": ("infinity-cc-24", 16_384, 27_300 * 16_384),
    "imagenet256_infinity_cc_32": ("infinity-cc-32", 16_384, 27_300 * 16_384),
    "imagenet256_var_d16": ("var-d16", 768, 333_637 * 768),
}
SPEC = TokenSpec(scales=(1, 2, 4), codebook_sizes=(196_560,), code_dim=24, latent_size=4)


def test_overrides_that_a_recipe_quotes_load() -> None:
    """Another kind of optimizer must not keep AdamW's learning rate."""
    file = CONFIGS / "imagenet256_var_d16.yaml"
    quoted = re.search(r"optimizer='(.*)'", file.read_text())
    assert quoted is not None
    config = load_config(GeneratorTrainingConfig, file, [f"optimizer={quoted[1]}"])
    other = load_config(GeneratorTrainingConfig, CONFIGS / "imagenet256_infinity_cc_12.yaml")
    changes = {"warmup_steps": 6673, "final_lr_fraction": 0.1}
    assert to_dict(config.optimizer) == to_dict(other.optimizer) | changes


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_the_presets(name: str) -> None:
    shape, batch_size, total = RECIPES[name]
    config = load_config(GeneratorTrainingConfig, CONFIGS / f"{name}.yaml")
    stage_1 = tokenizer_config(config.tokenizer)
    with torch.device("meta"):
        spec = ImageTokenizer(stage_1).spec
    assert config.model == preset(shape).config
    assert spec == preset(shape).spec
    assert config.run == f"runs/{name}"
    assert config.loop.batch_size == batch_size
    assert config.loop.batch_size * config.loop.steps == total


def test_a_dry_run_needs_neither_data_nor_tokenizer(
    capsys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(plan, "activation_bytes", lambda *_, **__: 2**20)  # tested below
    path = CONFIGS / "imagenet256_infinity_cc_12.yaml"
    overrides = [f"data.path={tmp_path / 'absent'}", f"run={tmp_path / 'run'}"]
    assert train_generator.main([str(path), *overrides, "--dry-run"]) == {}
    printed = capsys.readouterr().out
    # 242 M, of which 196,560 x (768 + 1) are the head's.
    assert "parameters, of which the head 151,154,640" in printed
    assert "521 tokens of 17.58 bits, 9,162 bits per image" in printed
    assert "(1.00 MiB an image)" in printed
    assert "counts 1,024 images per process, assuming one process" in printed
    assert "GPU-hours at an assumed 150 TFLOP/s sustained" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("dense", "depth"), [(False, 2), (True, 5)])
def test_activations_are_those_of_a_real_pass(
    dense: bool, depth: int, bf16: bool, checkpointed: bool, on_gpu: bool
) -> None:
    spec = replace(SPEC, codebook_sizes=(50,)) if dense else SPEC
    head = CategoricalHeadConfig() if dense else LatticeHeadConfig()
    config = GeneratorConfig(
        depth=depth, width=64, num_heads=4, num_classes=10, head=head, drop_path=0.1
    )
    model = TeacherForcing(NextScaleGenerator(config, spec), checkpoint_activations=checkpointed)

    def run(n: int) -> object:
        inputs = torch.zeros(n, spec.length, spec.code_dim)
        tokens = torch.zeros(n, spec.length, 1, dtype=torch.int64)
        return model(inputs, torch.zeros(n, dtype=torch.int64), tokens)

    forms = forms_of_gpus() if on_gpu else nullcontext()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), forms:
        expected = activations_per_image(run)
    count = partial(plan.activation_bytes, spec=spec, bf16=bf16, on_gpu=on_gpu)
    if checkpointed:  # blocks but the first keep the same: one is recomputed at a time
        expected += count(replace(config, depth=3)) - count(replace(config, depth=2))
    assert count(config, checkpoint_activations=checkpointed) == expected
    if checkpointed and depth > 3:
        assert expected < count(config)


def test_gpu_forms_keep_other_tensors() -> None:
    """In bf16 no probabilities of attention, but every part of a sum that no kernel fuses."""
    config = GeneratorConfig(depth=2, width=64, num_heads=4, num_classes=10)
    kept = [plan.activation_bytes(config, SPEC, bf16=True, on_gpu=gpu) for gpu in (False, True)]
    assert kept[0] != kept[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "adamw"},
        {"kind": "muon"},
        {"kind": "dion", "rank_fraction": 0.3},
        {"kind": "dion", "others": "adamw"},
    ],
    ids=str,
)
def test_state_is_that_of_a_real_step(changes: dict[str, Any]) -> None:
    config = GeneratorConfig(depth=1, width=16, num_heads=2, num_classes=3)
    data = {"run": "r", "tokenizer": "t", "data": {}, "model": {"depth": 1, "width": 16}}
    data["model"] |= {"num_heads": 2, "num_classes": 3}  # type: ignore[operator]
    data |= {"optimizer": changes, "loop": {"steps": 1, "batch_size": 1}}
    optimizer_config = from_dict(GeneratorTrainingConfig, data).optimizer
    model = NextScaleGenerator(config, SPEC)
    optimizer = build_any_optimizer(model, optimizer_config)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    parts = getattr(optimizer, "optimizers", [optimizer])
    kept = [values for part in parts for values in part.state.values()]
    numbers = sum(v.numel() for values in kept for k, v in values.items() if k != "step")
    assert state_size(plan.build_shapes(config, SPEC), optimizer_config) == numbers

"""Stage 2 as a task: optimizers, losses, logs, limits, resumption, training from tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from lambda24.common.config import to_dict
from lambda24.common.data.dataset import load_dataset, load_training_data
from lambda24.common.images import from_uint8
from lambda24.common.training.loop import fit
from lambda24.generator.blocks import FeedForward
from lambda24.generator.heads import TokenLoss
from lambda24.generator.model import NextScaleGenerator
from lambda24.generator.settings import GeneratorTrainingConfig
from lambda24.generator.task import GeneratorTask
from lambda24.scripts import extract_tokens, train_generator
from lambda24.tokenizer import ImageTokenizer
from tests.generator.tiny_run import data_parts

EVERYTHING: dict[str, Any] = {
    "optimizer": {"kind": "dion", "lr": 0.01, "rank_fraction": 0.5, "schedule": "warmdown"},
    "label_smoothing": 0.1,
    "scale_weights": "inverse_side",
    "self_correction": {"probability": 0.3},
}


def train(config: GeneratorTrainingConfig, image_tokenizer: ImageTokenizer) -> dict[str, float]:
    task = GeneratorTask(config, image_tokenizer, *data_parts(config))
    data = load_training_data(config.data)
    return fit(task, data, loop=config.loop, run=config.run, config=config, seed=config.seed)


def test_held_out_images_of_all_classes_are_evaluated(
    make_config: Any, image_tokenizer: ImageTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(num_eval_images=5)
    data = load_dataset(config.data, train=False)
    seen: list[int] = []
    images_uint8 = data.images_uint8

    def remember(indices: list[int]) -> torch.Tensor:
        seen.extend(indices)
        return images_uint8(indices)

    monkeypatch.setattr(data, "images_uint8", remember)
    task = GeneratorTask(config, image_tokenizer, data, load_dataset(config.data, train=True))
    task.prepare(Accelerator(cpu=True))
    task.evaluate(0)
    assert seen == [k * len(data) // 5 for k in range(5)]


def test_training_images_are_scored_as_held_out_ones_are(
    make_config: Any, image_tokenizer: ImageTokenizer
) -> None:
    """As if they were held out: no dropout, no augmentation, the averaged weights."""
    config = make_config(num_eval_images=24, class_dropout=0.5)
    held_out, train = data_parts(config)
    assert train.config.flip
    task = GeneratorTask(config, image_tokenizer, held_out, train)
    task.prepare(Accelerator(cpu=True))
    with torch.no_grad():  # so that averaged and other weights differ
        for weight in task.ema.average.parameters():
            weight.add_(torch.randn(weight.shape) / 10)
    scores = task.evaluate(0)
    task.eval_data = train
    swapped = task.evaluate(0)
    assert len(held_out) == 48 > 24
    for name in ("nll", "nll_0", "nll_2"):
        assert scores[f"train_{name}"] == swapped[name] != scores[name]
    pixels = train.images_uint8([2 * number for number in range(24)])
    with task.accelerator.autocast():  # bf16 if a test before this one asked for it
        tokens = image_tokenizer.encode(from_uint8(pixels))
        inputs, labels = image_tokenizer.next_scale_inputs(tokens), train.labels[::2]
        hidden = task.ema.average(inputs, labels)
        expected = task.ema.average.head.loss(hidden, tokens.indices).nll.mean()
    assert scores["train_nll"] == pytest.approx(float(expected), rel=1e-5)
    assert task.minimized == "nll"


def state(run: str | Path, step: int) -> dict[str, Any]:
    file = Path(run) / "checkpoints" / f"step_{step:06d}" / "state.pt"
    task: dict[str, Any] = torch.load(file, weights_only=True)["task"]
    return task


def assert_same(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


def test_everything_at_once_logs_every_scale_and_resumes(
    make_config: Any, image_tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    loop = {"steps": 4, "batch_size": 16, "log_every": 1, "save_every": 2}
    whole = make_config(**EVERYTHING, loop=loop)
    scores = train(whole, image_tokenizer)
    lines = [json.loads(line) for line in (Path(whole.run) / "metrics.jsonl").open()]
    for scale in range(3):
        assert lines[0][f"nll_{scale}"] > 5
        assert lines[0][f"abs_log_z_{scale}"] == pytest.approx(12.19, abs=0.2)  # uniform
        assert 0 <= scores[f"accuracy_{scale}"] <= 1
    mean = sum(scores[f"nll_{k}"] * n for k, n in enumerate((1, 4, 16))) / 21
    assert scores["nll"] == pytest.approx(mean, rel=1e-5)
    # Stopped after two steps, and started again.
    stopped = make_config(**EVERYTHING, loop=loop, run=str(tmp_path / "stopped"))
    train(stopped, image_tokenizer)
    checkpoints = Path(stopped.run) / "checkpoints"
    (checkpoints / "step_000004" / "state.pt").unlink()
    train(stopped, image_tokenizer)
    assert_same(state(stopped.run, 4), state(whole.run, 4))


def test_a_run_checkpoints_or_compiles_blocks_if_told(
    make_config: Any, image_tokenizer: ImageTokenizer, tmp_path: Path, monkeypatch: Any
) -> None:
    """Bit for bit the same run; what is compiled is a test of the model."""
    model = {"depth": 2, "width": 32, "num_heads": 2, "num_classes": 10, "drop_path": 0.5}
    compiled: list[Any] = []
    monkeypatch.setattr(NextScaleGenerator, "compile", lambda self: compiled.append(self))
    calls: dict[str, int] = {}

    def count(name: str) -> None:
        calls[name] = calls.get(name, 0) + 1

    for name in ("plain", "checkpoint_activations", "compile"):
        options = {} if name == "plain" else {name: True}
        monkeypatch.setattr(FeedForward, "__call__", _counted(partial(count, name)))
        train(make_config(model=model, run=str(tmp_path / name), **options), image_tokenizer)
        assert len(compiled) == (name == "compile")
        assert_same(state(tmp_path / name, 2), state(tmp_path / "plain", 2))
    assert calls["checkpoint_activations"] == calls["plain"] + 2 * 2  # two steps, two blocks


def _counted(count: Callable[[], None]) -> Callable[..., torch.Tensor]:
    """A module's call that also counts."""

    def call(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        count()
        found: torch.Tensor = torch.nn.Module.__call__(self, x)
        return found

    return call


def test_muon_trains_and_saves(make_config: Any, image_tokenizer: ImageTokenizer) -> None:
    config = make_config(optimizer={"kind": "muon", "lr": 1e-3})
    before = GeneratorTask(config, image_tokenizer, *data_parts(config)).generator.state_dict()
    train(config, image_tokenizer)
    after = state(config.run, 2)["generator"]
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert {"blocks.1.mlp.fc1.weight", "head.linear.weight", "start"} <= set(changed)


def test_the_head_and_the_input_projection_are_no_hidden_matrices(
    make_config: Any, image_tokenizer: ImageTokenizer
) -> None:
    config = make_config(**EVERYTHING)
    task = GeneratorTask(config, image_tokenizer, *data_parts(config))
    names = {id(p): name for name, p in task.generator.named_parameters()}
    claimed = {
        names[id(p)]: (group["algorithm"], group["lr_scale"])
        for group in task.optimizer.param_groups
        for p in group["params"]
    }
    assert claimed.keys() == set(names.values())
    assert claimed["head.linear.weight"] == ("lion", 1 / math.sqrt(32))
    for name in ("input_projection.weight", "class_embedding.weight", "start", "head.linear.bias"):
        assert claimed[name] == ("lion", 1.0)
    assert claimed["blocks.0.attention.proj.weight"] == ("dion", 1.0)


def test_a_limit_stops_the_run(make_config: Any, image_tokenizer: ImageTokenizer) -> None:
    config = make_config(guard={"abs_log_z": 5.0})
    with pytest.raises(RuntimeError, match=r"step 0: abs_log_z is 12\.\d+, guard\.abs_log_z is 5"):
        train(config, image_tokenizer)


def test_a_limit_stops_all_processes(
    make_config: Any, image_tokenizer: ImageTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over processes decides, here one that others have raised."""
    monkeypatch.setattr(Accelerator, "reduce", lambda self, value, reduction: value + 100)
    with pytest.raises(RuntimeError, match=r"step 0: abs_log_z is 112\.\d"):
        train(make_config(guard={"abs_log_z": 50.0}), image_tokenizer)


def test_opposite_factors_do_not_hide_log_z(
    make_config: Any, image_tokenizer: ImageTokenizer
) -> None:
    config = make_config()
    task = GeneratorTask(config, image_tokenizer, *data_parts(config))
    task.accelerator = Accelerator(cpu=True)
    zeros = torch.zeros(2, image_tokenizer.spec.length)
    losses = TokenLoss(nll=zeros, log_z=zeros, factor_squares=zeros + 3**2 + 4**2)
    tokens = image_tokenizer.encode(torch.zeros(2, 3, 16, 16))
    model = cast(nn.Module, lambda *arguments, **options: losses)
    assert task._losses(model, zeros, zeros, tokens)["abs_log_z"] == pytest.approx(5)


def test_a_warm_up_longer_than_the_run_is_told(
    make_config: Any, image_tokenizer: ImageTokenizer
) -> None:
    config = make_config(
        optimizer={"lr": 1e-3, "warmup_steps": 20}, loop={"steps": 1, "batch_size": 16}
    )
    train(config, image_tokenizer)
    log = (Path(config.run) / "log.txt").read_text()
    assert "optimizer.warmup_steps is 20, above loop.steps 1" in log
    assert "ends at 5e-05 of optimizer.lr 0.001" in log


@pytest.mark.parametrize("decay", [2.0, 1.0, -0.1])
def test_ema_decay_is_a_fraction(make_config: Any, decay: float) -> None:
    with pytest.raises(ValueError, match=rf"ema_decay: got {decay}"):
        make_config(ema_decay=decay)


def test_tokens_and_self_correction_exclude_each_other(make_config: Any) -> None:
    with pytest.raises(ValueError, match="self_correction quantizes images anew"):
        make_config(tokens="somewhere", self_correction={"probability": 0.1})


def test_training_from_tokens_is_training_from_images(make_config: Any, tmp_path: Path) -> None:
    """Bit for bit, with mirrored images, over two epochs."""
    loop = {"steps": 4, "batch_size": 24, "log_every": 1}
    online = make_config(loop=loop)
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(to_dict(online)))
    tokens = [f"tokens={tmp_path / 'tokens'}"]
    with pytest.raises(ValueError, match="tokens: missing"):
        extract_tokens.main([str(file)])
    with pytest.raises(ValueError, match="is not a token cache"):
        train_generator.main([str(file), *tokens, f"run={tmp_path / 'cached'}"])
    assert extract_tokens.main([str(file), *tokens, "--shard-size", "20"]) == 3
    assert extract_tokens.main([str(file), *tokens, "--shard-size", "20"]) == 0
    with pytest.raises(ValueError, match="precision is 'fp32' there and 'bf16' here"):
        train_generator.main([str(file), *tokens, "loop.precision=bf16", f"run={tmp_path / 'x'}"])
    train_generator.main([str(file)])
    train_generator.main([str(file), *tokens, f"run={tmp_path / 'cached'}"])
    assert_same(state(tmp_path / "cached", 4), state(online.run, 4))


def test_coordinates_are_also_scored_among_the_codes(
    make_config: Any, image_tokenizer: ImageTokenizer
) -> None:
    """Before training every string of 24 coordinates out of nine values is as likely."""
    model = {"depth": 1, "width": 32, "num_heads": 2, "num_classes": 10}
    config = make_config(model=model | {"head": {"kind": "coordinates"}})
    task = GeneratorTask(config, image_tokenizer, *data_parts(config))
    task.prepare(Accelerator(cpu=True))
    scores = task.evaluate(0)
    assert scores["nll"] == pytest.approx(24 * math.log(9), rel=0.01)
    assert scores["code_nll"] == pytest.approx(math.log(196_560), rel=0.01)
    assert math.log(scores["code_mass"]) == pytest.approx(
        math.log(196_560) - 24 * math.log(9), abs=0.2
    )

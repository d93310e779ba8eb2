"""One step of stage 2 against its formulas, written out over all codes of a small vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from lambda24.common.config import from_dict
from lambda24.common.data.batches import Batch, hash_integers, uniform_from_keys
from lambda24.generator.task import CLASS_DROPOUT_STREAM, GeneratorTask
from lambda24.tokenizer import ImageTokenizer, TokenizerConfig
from tests.generator.tiny_run import data_parts

MakeTask = Callable[..., GeneratorTask]
NULL = 10  # behind the ten digits


@pytest.fixture
def make_task(make_config: Any) -> MakeTask:
    """Tasks on a tokenizer of 75 codes; heads far from uniform."""
    torch.manual_seed(0)
    tokenizer = from_dict(
        TokenizerConfig,
        {
            "image_size": 16,
            "pyramid": {"scales": [1, 2, 4]},
            "autoencoder": {"kind": "cnn", "channels": [8, 8], "patch_size": 2, "groups": 4},
            "quantizer": {"kind": "fsq", "levels": [5, 5, 3]},
        },
    )
    image_tokenizer = ImageTokenizer(tokenizer).eval()

    def make(**changes: Any) -> GeneratorTask:
        model = {"depth": 1, "width": 32, "num_heads": 2, "num_classes": 10}
        config = make_config(model=model | {"head": {"kind": "categorical"}}, **changes)
        task = GeneratorTask(config, image_tokenizer, *data_parts(config))
        task.prepare(Accelerator(cpu=True))
        with torch.no_grad():
            for parameter in task.generator.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return task

    return make


def batch_of(count: int) -> Batch:
    torch.manual_seed(1)
    keys = hash_integers(torch.arange(count), 7)
    return Batch(torch.rand(count, 3, 16, 16) * 2 - 1, torch.randint(10, (count,)), keys)


def seen_by(task: GeneratorTask) -> dict[str, Tensor]:
    """What the generator is given at its next call."""
    seen: dict[str, Tensor] = {}

    def remember(module: Any, arguments: tuple[Tensor, ...]) -> None:
        seen.update(inputs=arguments[0], labels=arguments[1])

    task.generator.register_forward_pre_hook(remember)
    return seen


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", ["uniform", "inverse_side"])
def test_the_loss_by_definition(make_task: MakeTask, smoothing: float, weights: str) -> None:
    """Smoothed cross entropy plus the Z-loss, weighed by scale, over all 75 codes."""
    task = make_task(
        label_smoothing=smoothing, scale_weights=weights, z_loss_weight=0.3, class_dropout=0.0
    )
    batch, tokenizer = batch_of(6), task.image_tokenizer
    with torch.no_grad():
        found = task._batch_losses(batch)
        tokens = tokenizer.encode(batch.images)
        hidden = task.generator(tokenizer.next_scale_inputs(tokens), batch.labels)
        logits = task.generator.head.logits(hidden).double()  # (B, L, V)
    log_z = logits.exp().sum(-1).log()
    right = log_z - logits.gather(-1, tokens.indices)[..., 0]
    anything = log_z - logits.mean(-1)
    sides = torch.tensor([1.0] + [2.0] * 4 + [4.0] * 16, dtype=torch.float64)
    weight = torch.ones(21).double() if weights == "uniform" else 1 / sides
    weight = weight / weight.sum() * 21
    loss = (1 - smoothing) * right + smoothing * anything + 0.3 * log_z**2
    assert float(found["loss"]) == pytest.approx(float((loss * weight).mean()), rel=1e-5)
    assert float(found["nll"]) == pytest.approx(float(right.mean()), rel=1e-5)
    assert float(found["abs_log_z"]) == pytest.approx(float(log_z.abs().mean()), rel=1e-5)
    assert float(found["nll_2"]) == pytest.approx(float(right[:, 5:].mean()), rel=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3, 0.9])
def test_labels_are_dropped_to_the_null_class(make_task: MakeTask, dropout: float) -> None:
    task, batch = make_task(class_dropout=dropout), batch_of(400)
    seen = seen_by(task)
    with torch.no_grad():
        task._batch_losses(batch)
    is_dropped = uniform_from_keys(batch.keys, CLASS_DROPOUT_STREAM) < dropout
    assert torch.equal(seen["labels"] == NULL, is_dropped)
    assert torch.equal(seen["labels"][~is_dropped], batch.labels[~is_dropped])
    assert float(is_dropped.float().mean()) == pytest.approx(dropout, abs=0.07)


def test_self_correction_shows_the_history_and_asks_for_what_repairs_it(
    make_task: MakeTask, image_tokenizer: ImageTokenizer, make_config: Any
) -> None:
    """Inputs are of the tokens with errors; targets are those quantized after them."""
    config = make_config(self_correction={"probability": 1.0}, class_dropout=0.0)
    task = GeneratorTask(config, image_tokenizer, *data_parts(config))
    task.prepare(Accelerator(cpu=True))
    batch = batch_of(5)
    assert task.self_correction is not None
    seen = seen_by(task)
    with torch.no_grad():
        found = task._batch_losses(batch)
        targets, history = task.self_correction.encode(batch)
        inputs = image_tokenizer.next_scale_inputs(history)
        assert torch.equal(seen["inputs"], inputs)
        assert not torch.equal(inputs, image_tokenizer.next_scale_inputs(targets))
        hidden = task.generator(inputs, batch.labels)
        nll = task.generator.head.loss(hidden, targets.indices).nll.mean()
    assert float(found["nll"]) == pytest.approx(float(nll), rel=1e-6)


def test_evaluation_is_of_the_averaged_weights(make_task: MakeTask) -> None:
    """A uniform average beside weights that are far from it."""
    task = make_task(num_eval_images=8)
    with torch.no_grad():
        for parameter in task.ema.average.head.parameters():
            parameter.zero_()
    scores = task.evaluate(0)
    for name in ("nll", "train_nll", "nll_0", "nll_2"):
        assert scores[name] == pytest.approx(torch.tensor(75.0).log().item(), rel=1e-5)


def test_a_step_moves_the_average_by_its_rule(make_task: MakeTask) -> None:
    task = make_task(ema_decay=0.5)
    average = {name: p.clone() for name, p in task.ema.average.named_parameters()}
    task.train_step([batch_of(4)], 9)  # (1 + 9) / (10 + 9) is above the decay
    for name, online in task.generator.named_parameters():
        expected = 0.5 * average[name] + 0.5 * online.detach()
        found = dict(task.ema.average.named_parameters())[name]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_gradient_is_that_of_the_mean_loss(make_task: MakeTask, accumulation: int) -> None:
    """As a plain gradient step shows, whose length an adaptive optimizer would hide."""
    clip = 1e9
    task = make_task(class_dropout=0.0, optimizer={"lr": 0.1, "clip_norm": clip})
    batch = batch_of(6)
    losses = task._batch_losses(batch)["loss"]
    gradients = torch.autograd.grad(losses, list(task.generator.parameters()), allow_unused=True)
    norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    size = 6 // accumulation
    parts = [
        Batch(batch.images[i : i + size], batch.labels[i : i + size], batch.keys[i : i + size])
        for i in range(0, 6, size)
    ]
    scalars = task.train_step(parts, 0)
    assert float(scalars["gradient_norm"]) == pytest.approx(float(norm), rel=1e-4)

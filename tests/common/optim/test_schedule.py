"""Groups, schedules, clipping and averages."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lambda24.common.optim.adamw import OptimizerConfig, build_optimizer
from lambda24.common.optim.ema import EMA
from lambda24.common.optim.gradients import NotFiniteError, clip_gradients
from lambda24.common.optim.schedule import lr_at, set_lr


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)
        self.positions = nn.Parameter(torch.zeros(2, 4))
        self.positions.no_weight_decay = True  # type: ignore[attr-defined]
        self.head = nn.Parameter(torch.zeros(4, 4))
        self.head.lr_scale = 0.5  # type: ignore[attr-defined]


def names(model: nn.Module, group: dict[str, object]) -> set[str]:
    members = {id(parameter) for parameter in group["params"]}  # type: ignore[attr-defined]
    return {name for name, parameter in model.named_parameters() if id(parameter) in members}


def test_groups() -> None:
    model = Model()
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.1, weight_decay=0.3))
    groups = {(g["weight_decay"], g["lr_scale"]): names(model, g) for g in optimizer.param_groups}
    assert groups == {
        (0.3, 1.0): {"linear.weight", "conv.weight"},
        (0.3, 0.5): {"head"},
        (0.0, 1.0): {
            "table.weight",
            "linear.bias",
            "conv.bias",
            "norm.weight",
            "norm.bias",
            "positions",
        },
    }


def test_set_lr_scales_and_forgets() -> None:
    optimizer = build_optimizer(Model(), OptimizerConfig())
    for lr in (0.2, 0.4):
        set_lr(optimizer, lr)
        assert {(g["lr_scale"], g["lr"]) for g in optimizer.param_groups} == {
            (1.0, lr),
            (0.5, lr / 2),
        }


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="no parameter"):
        build_optimizer(nn.ReLU(), OptimizerConfig())


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    config = OptimizerConfig(lr=2.0, warmup_steps=4)
    assert [lr_at(config, step, 100) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 1.0, 50: 1.0, 99: 1.0}),
        ("cosine", {0: 1.0, 25: 0.1 + 0.9 * (2 + math.sqrt(2)) / 4, 50: 0.55, 100: 0.1}),
        ("warmdown", {0: 1.0, 80: 1.0, 90: 0.55, 100: 0.1, 120: 0.1}),
    ],
)
def test_schedules(schedule: str, expected: dict[int, float]) -> None:
    config = OptimizerConfig(lr=1.0, schedule=schedule, final_lr_fraction=0.1)  # type: ignore[arg-type]
    for step, lr in expected.items():
        assert lr_at(config, step, 100) == pytest.approx(lr)


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_clip_gradients() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model(torch.ones(4, 3)).sum().backward()
    before = gradients(model)
    norm = clip_gradients(model, None)
    assert norm == pytest.approx(float(before.norm()))
    assert torch.equal(gradients(model), before)
    assert clip_gradients(model, 2 * float(norm)) == pytest.approx(float(norm))
    torch.testing.assert_close(gradients(model), before)
    clip_gradients(model, 0.5)
    torch.testing.assert_close(gradients(model), before * 0.5 / norm)


def test_clip_names_what_is_not_finite() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model(torch.ones(4, 3)).sum().backward()
    grad = model.get_parameter("1.weight").grad
    assert grad is not None
    grad[0, 1] = float("nan")
    finite = model.get_parameter("0.weight").grad
    assert finite is not None
    before = finite.clone()
    with pytest.raises(NotFiniteError, match=r"gradient of 1\.weight is not finite"):
        clip_gradients(model, 1.0)
    assert torch.equal(finite, before)


def test_average_follows_its_formula() -> None:
    model = nn.Linear(2, 2)
    average = EMA(model, 0.5)
    expected = model.weight.detach().clone()
    for step in range(8):
        with torch.no_grad():
            model.weight.add_(1.0)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        average.update(step)
    torch.testing.assert_close(average.average.get_parameter("weight"), expected)
    assert not any(p.requires_grad for p in average.average.parameters())


def test_average_is_fp32_copies_buffers_and_restores() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)).bfloat16()
    average = EMA(model, 0.9)
    assert not average.average.training
    model(torch.randn(8, 3).bfloat16())
    average.update(0)
    assert average.average.get_parameter("1.weight").dtype == torch.float32
    means = average.average.get_buffer("0.running_mean")
    assert torch.equal(means, model.get_buffer("0.running_mean").float())
    assert int(average.average.get_buffer("0.num_batches_tracked")) == 1
    other = EMA(model, 0.9)
    other.load_state_dict(average.state_dict())
    for a, b in zip(average.average.parameters(), other.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_decay_must_be_a_fraction() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1"):
        EMA(nn.Linear(1, 1), 1.0)

"""Roles of parameters, and the optimizers of a config."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lambda24.common.config import config_class, from_dict, load_config, to_dict
from lambda24.common.optim.adamw import OptimizerConfig
from lambda24.common.optim.build import (
    AnyOptimizerConfig,
    DionConfig,
    MuonConfig,
    build_any_optimizer,
    build_dion,
    parameter_roles,
)
from lambda24.common.optim.dion import Dion
from lambda24.common.optim.schedule import set_lr


@config_class
class Run:
    optimizer: AnyOptimizerConfig = OptimizerConfig()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.project = nn.Linear(3, 4)
        self.project.optimizer_role = "embedding"  # type: ignore[assignment]
        self.hidden = nn.Linear(4, 4)
        self.conv = nn.Conv2d(1, 4, 3)
        self.positions = nn.Parameter(torch.zeros(2, 4))
        self.positions.no_weight_decay = True  # type: ignore[attr-defined]
        self.head = nn.Linear(4, 9)
        self.head.optimizer_role = "unembedding"  # type: ignore[assignment]
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


def names(model: nn.Module, group: dict[str, list[nn.Parameter]]) -> set[str]:
    members = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in members}


def test_a_config_without_kind_is_adamw() -> None:
    assert from_dict(Run, {"optimizer": {"lr": 0.5}}).optimizer == OptimizerConfig(lr=0.5)
    dion = from_dict(Run, {"optimizer": {"kind": "dion", "rank_fraction": 0.5, "warmup_steps": 3}})
    assert dion.optimizer == DionConfig(rank_fraction=0.5, warmup_steps=3)
    assert from_dict(Run, to_dict(dion)) == dion
    assert load_config(Run, None, ["optimizer.kind=muon"]).optimizer == MuonConfig()
    with pytest.raises(ValueError, match=r"optimizer\.kind: got 'sgd' \(allowed: .*'dion'"):
        from_dict(Run, {"optimizer": {"kind": "sgd"}})
    with pytest.raises(ValueError, match=r"optimizer\.rank_fraction.*no such key"):
        from_dict(Run, {"optimizer": {"rank_fraction": 0.5}})
    with pytest.raises(ValueError, match=r"optimizer\.rank_fraction: got 2"):
        from_dict(Run, {"optimizer": {"kind": "dion", "rank_fraction": 2.0}})


def test_dion_groups() -> None:
    model = Model()
    optimizer = build_any_optimizer(model, DionConfig(lr=0.1, weight_decay=0.3), seed=7)
    assert isinstance(optimizer, Dion)
    assert optimizer.seed == 7
    groups = {(g["algorithm"], g["lr_scale"], g["weight_decay"]): g for g in optimizer.param_groups}
    assert {key: names(model, group) for key, group in groups.items()} == {
        ("dion", 1.0, 0.3): {"hidden.weight", "conv.weight"},
        ("lion", 0.5, 0.0): {"head.weight"},
        ("lion", 1.0, 0.0): {
            "table.weight",
            "project.weight",
            "positions",
            *(f"{layer}.bias" for layer in ("project", "hidden", "conv", "head")),
        },
    }
    assert groups["lion", 0.5, 0.0]["lr"] == 0.05  # lr / sqrt(4)
    plain = build_any_optimizer(model, DionConfig(others="adamw"))
    assert {(g["algorithm"], g["lr_scale"]) for g in plain.param_groups} == {
        ("dion", 1.0),
        ("adamw", 1.0),
    }


def test_every_parameter_is_claimed_once() -> None:
    model = Model()
    roles = parameter_roles(model)
    assert set(roles) == dict(model.named_parameters()).keys()
    wrapped = [(f"module.{name}", p) for name, p in model.named_parameters()]
    with pytest.raises(ValueError, match=r"no role for \['module\."):
        build_dion(wrapped, roles, DionConfig())
    twice = [*model.named_parameters(), ("head.weight", model.head.weight)]
    with pytest.raises(ValueError, match="stands twice"):
        build_dion(twice, roles, DionConfig())
    tied = Model()
    tied.head.weight = tied.table.weight
    with pytest.raises(
        ValueError, match=r"table\.weight of role embedding .* head\.weight of role un"
    ):
        parameter_roles(tied)
    with pytest.raises(ValueError, match="no parameter"):
        build_any_optimizer(nn.ReLU(), DionConfig())


def test_muon_trains_resumes_and_leaves_vectors_to_adamw() -> None:
    torch.manual_seed(0)
    model = Model()
    start = copy.deepcopy(model)
    optimizer = build_any_optimizer(model, MuonConfig(lr=0.01))
    groups = [names(model, group) for group in optimizer.param_groups]
    assert groups[:1] == [{"hidden.weight"}]
    assert {"conv.weight"} in groups
    assert sum(map(len, groups)) == len(list(model.parameters())) - 1

    def run(steps: range) -> None:
        for step in steps:
            set_lr(optimizer, 0.01 * (step + 1))
            for parameter in model.parameters():
                generator = torch.Generator().manual_seed(step)
                if parameter.requires_grad:
                    parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    run(range(2))
    half, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    run(range(2, 4))
    expected = copy.deepcopy(model.state_dict())
    changed = [
        name for name, value in start.state_dict().items() if not value.equal(expected[name])
    ]
    assert set(changed) == expected.keys() - {"frozen"}
    model.load_state_dict(half)
    optimizer = build_any_optimizer(model, MuonConfig(lr=0.01))
    optimizer.load_state_dict(state)
    run(range(2, 4))
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name])

"""Dion and Muon for the hidden matrices of a network, and what its other parameters get.

A parameter has one role: vector (one dimension), embedding (tables, input projections), unembedding
(rows are classes) or hidden matrix. Only the last kind is orthonormalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag
from torch import nn

from lambda24.common.config import config_class
from lambda24.common.optim.adamw import OptimizerConfig, build_optimizer
from lambda24.common.optim.dion import Dion, Orthonormalization
from lambda24.common.optim.schedule import ScheduleConfig
from lambda24.common.training.fsdp import shard_optimizer_state

Role = Literal["vector", "embedding", "unembedding", "matrix"]
Fraction = Annotated[float, Field(ge=0, lt=1)]


@config_class
class DionConfig(ScheduleConfig):
    """Dion for hidden matrices; the rest, at the same learning rate, by `others`.

    With Lion the unembedding's learning rate is divided by the square root of its width. Weight
    decay is for hidden matrices.

    Args:
        lr: shared by all parameters.
        mu: how much of the captured momentum is kept.
        rank_fraction: 1 below some 300 million parameters, 0.25 to 0.5 above.
        betas: of the others' rule.
        orthonormalization: "auto" is "qr" on a CPU and "rcqr" on a GPU.
    """

    kind: Literal["dion"] = "dion"
    lr: Annotated[float, Field(gt=0)] = 0.01
    mu: Fraction = 0.95
    rank_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    others: Literal["lion", "adamw"] = "lion"
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    orthonormalization: Orthonormalization = "auto"


@config_class
class MuonConfig(ScheduleConfig):
    """torch's Muon for two-dimensional hidden matrices and AdamW for the rest, at one rate.

    Muon's steps are scaled to the size of AdamW's (`match_rms_adamw`), so that both share `lr`.
    """

    kind: Literal["muon"] = "muon"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    momentum: Fraction = 0.95
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05


def _kind(value: Any) -> str:
    """A config without `kind` is AdamW's."""
    if isinstance(value, Mapping):
        return str(value.get("kind", "adamw"))
    return str(getattr(value, "kind", "adamw"))


AnyOptimizerConfig = Annotated[
    Annotated[OptimizerConfig, Tag("adamw")]
    | Annotated[DionConfig, Tag("dion")]
    | Annotated[MuonConfig, Tag("muon")],
    Discriminator(_kind),
]


def build_any_optimizer(
    module: nn.Module, config: AnyOptimizerConfig, *, seed: int = 0
) -> torch.optim.Optimizer:
    """The optimizer of a config over all trainable parameters of `module`.

    Args:
        seed: of Dion's random numbers.

    Raises:
        ValueError: nothing to train; see `parameter_roles`; Muon with a torch that has none.
    """
    if isinstance(config, OptimizerConfig):
        return build_optimizer(module, config)
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("build_any_optimizer got no parameter that requires a gradient")
    roles = parameter_roles(module)
    if isinstance(config, DionConfig):
        return build_dion(named, roles, config, seed=seed)
    return _build_muon(named, roles, config)


def parameter_roles(module: nn.Module) -> dict[str, Role]:
    """Role of every parameter by name; call it before FSDP2, which replaces the parameters.

    Tables are the weights of `nn.Embedding` and parameters with `no_weight_decay = True`. A module
    with an attribute `optimizer_role` names the role of its own weights of two or more dimensions.

    Raises:
        ValueError: a parameter that two modules share in different roles.
    """
    roles: dict[str, Role] = {}
    first: dict[int, str] = {}
    for prefix, owner in module.named_modules():
        for own_name, parameter in owner.named_parameters(recurse=False):
            name = f"{prefix}.{own_name}" if prefix else own_name
            role = _role(owner, parameter)
            earlier = first.setdefault(id(parameter), name)
            if earlier == name:
                roles[name] = role
            elif roles[earlier] != role:
                raise ValueError(
                    f"{earlier} of role {roles[earlier]} is the same parameter as {name} of role "
                    f"{role}"
                )
    return roles


def _role(owner: nn.Module, parameter: nn.Parameter) -> Role:
    if parameter.ndim < 2:
        return "vector"
    if isinstance(owner, nn.Embedding) or getattr(parameter, "no_weight_decay", False):
        return "embedding"
    role: Role = getattr(owner, "optimizer_role", "matrix")
    return role


def state_size(module: nn.Module, config: AnyOptimizerConfig) -> int:
    """Numbers of state that the optimizer of a config keeps on one process, steps not counted.

    Looks at shapes only: weights may be on the meta device.
    """
    roles = parameter_roles(module)
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return sum(_state_of(p, roles[name], config) for name, p in parameters.items())


def _state_of(parameter: nn.Parameter, role: Role, config: AnyOptimizerConfig) -> int:
    count = parameter.numel()
    if isinstance(config, DionConfig):
        if role != "matrix":
            return count if config.others == "lion" else 2 * count
        smaller = min(parameter.shape[0], count // parameter.shape[0])
        return count + smaller * min(smaller, math.ceil(config.rank_fraction * smaller))
    is_hidden = isinstance(config, MuonConfig) and role == "matrix" and parameter.ndim == 2
    return count if is_hidden and getattr(parameter, "lr_scale", 1.0) == 1 else 2 * count


def build_dion(
    parameters: Iterable[tuple[str, nn.Parameter]],
    roles: Mapping[str, Role],
    config: DionConfig,
    *,
    seed: int = 0,
) -> Dion:
    """Dion over named parameters, every one claimed once.

    Raises:
        ValueError: a parameter without a role (a wrapper's prefix?), or one that stands twice.
    """
    named = list(parameters)
    strangers = [name for name, _ in named if name not in roles]
    if strangers:
        raise ValueError(f"no role for {strangers[:4]} (roles: {list(roles)[:4]}...)")
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        scale = float(getattr(parameter, "lr_scale", 1.0))
        if roles[name] == "unembedding" and config.others == "lion":
            scale /= math.sqrt(parameter.shape[1])
        groups.setdefault((roles[name] == "matrix", scale), []).append(parameter)
    return Dion(
        [
            {
                "params": members,
                "algorithm": "dion" if is_matrix else config.others,
                "weight_decay": config.weight_decay if is_matrix else 0.0,
                "lr": config.lr * scale,
                "lr_scale": scale,
            }
            for (is_matrix, scale), members in groups.items()
        ],
        mu=config.mu,
        rank_fraction=config.rank_fraction,
        betas=config.betas,
        orthonormalization=config.orthonormalization,
        seed=seed,
    )


def _build_muon(
    named: list[tuple[str, nn.Parameter]], roles: Mapping[str, Role], config: MuonConfig
) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"optimizer.kind 'muon' needs torch 2.9 or later, got {torch.__version__}")

    hidden: list[nn.Parameter] = []
    others: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        decays, scale = roles[name] == "matrix", float(getattr(parameter, "lr_scale", 1.0))
        if decays and parameter.ndim == 2 and scale == 1:
            hidden.append(parameter)
        else:
            others.setdefault((decays, scale), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": members,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr": config.lr * scale,
            "lr_scale": scale,
        }
        for (decays, scale), members in others.items()
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if hidden:
        muon = torch.optim.Muon(
            hidden,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        optimizers.append(muon)
    if groups:
        optimizers.append(torch.optim.AdamW(groups, betas=config.betas, fused=True))
    for optimizer in optimizers:
        optimizer.register_load_state_dict_pre_hook(shard_optimizer_state)
    return JoinedOptimizer(optimizers)


class JoinedOptimizer(torch.optim.Optimizer):
    """Several optimizers over different parameters as one; their groups are shared, not copied."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        groups = chain.from_iterable(optimizer.param_groups for optimizer in optimizers)
        super().__init__([dict(group) for group in groups], {})
        self.param_groups = list(
            chain.from_iterable(optimizer.param_groups for optimizer in optimizers)
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of each."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The parts' states in order; `state` and `param_groups` are theirs."""
        parts = [optimizer.state_dict() for optimizer in self.optimizers]
        return {"parts": parts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        for optimizer, part in zip(self.optimizers, state_dict["parts"], strict=True):
            optimizer.load_state_dict(part)
        self.param_groups = list(
            chain.from_iterable(optimizer.param_groups for optimizer in self.optimizers)
        )

"""AdamW: its settings, and which parameters it decays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from lambda24.common.config import config_class
from lambda24.common.optim.schedule import ScheduleConfig
from lambda24.common.training.fsdp import shard_optimizer_state


@config_class
class OptimizerConfig(ScheduleConfig):
    """AdamW; `common.optim.build` has the alternatives.

    Args:
        weight_decay: decoupled decay of matrices and kernels; see `build_optimizer`.
    """

    kind: Literal["adamw"] = "adamw"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.95,
    )
    weight_decay: Annotated[float, Field(ge=0)] = 0.05


def build_optimizer(
    parameters: nn.Module | Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, in at most two groups per `lr_scale`.

    Weight decay is for weights of two or more dimensions. Vectors (biases, gains), `nn.Embedding`
    tables of a given module, and parameters with the attribute `no_weight_decay = True` get none.
    A parameter's attribute `lr_scale` multiplies its learning rate.

    Raises:
        ValueError: nothing to train.
    """
    tables: set[int] = set()
    if isinstance(parameters, nn.Module):
        embeddings = [m for m in parameters.modules() if isinstance(m, nn.Embedding)]
        tables = {id(embedding.weight) for embedding in embeddings}
        parameters = parameters.named_parameters()
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for _, parameter in parameters:
        if not parameter.requires_grad:
            continue
        exempt = id(parameter) in tables or getattr(parameter, "no_weight_decay", False)
        decays = parameter.ndim >= 2 and not exempt
        scale = float(getattr(parameter, "lr_scale", 1.0))
        groups.setdefault((decays, scale), []).append(parameter)
    if not groups:
        raise ValueError("build_optimizer got no parameter that requires a gradient")
    optimizer = torch.optim.AdamW(
        [
            {
                "params": members,
                "weight_decay": config.weight_decay if decays else 0.0,
                "lr": config.lr * scale,
                "lr_scale": scale,
            }
            for (decays, scale), members in groups.items()
        ],
        betas=config.betas,
        fused=True,
    )
    optimizer.register_load_state_dict_pre_hook(shard_optimizer_state)
    return optimizer

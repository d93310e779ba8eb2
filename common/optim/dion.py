"""Dion (arXiv 2504.05295), with Lion or AdamW for what is no hidden matrix, in one optimizer.

Dion replaces a matrix's momentum by an orthonormalised low-rank approximation; what the rank misses
stays in the momentum (error feedback). The random start and sketches are functions of (seed, place
of the parameter, step): all ranks agree, and a resumed run needs no random state. Under FSDP2 each
process updates its rows; the result is that of one process. State is fp32 or better.

A departure from the reference implementation: where the momentum's rank is below Dion's (AdaLN's
weights with few classes), it normalises rounding noise to full steps. Here columns of R below
`NULL_FLOOR` make no step and keep their column of Q; gradients of full rank are unaffected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from lambda24.common.data.batches import hash_integer

Orthonormalization = Literal["auto", "qr", "rcqr"]

SKETCH_FACTOR, SKETCH_MULTIPLE = 1.25, 128  # rows of a sketch a column; of which a multiple is made
ALGORITHMS = ("dion", "lion", "adamw")
NORM_EPSILON = 1e-8
ADAM_EPSILON = 1e-8
# Columns of R are null up to this many machine epsilons of the longest one (1.5e-5 in fp32). Null
# columns measured 1 to 5, but 10 to 500 at the first step, whose Q is random.
NULL_FLOOR, FIRST_NULL_FLOOR = 128, 2048
START, SKETCH = 0, 1  # streams of random numbers of a parameter


class Dion(torch.optim.Optimizer):
    """One update rule a group.

    A group may set any of the arguments below but the last two, and `lr_scale` (see
    `common.optim.schedule.set_lr`).

    Args:
        algorithm: "dion" for tensors of two or more dimensions, taken as `(out, in)` with all but
            the first flattened; "lion" or "adamw" for any.
        lr: learning rate; Dion's step is `lr * sqrt(out / in)` times an orthonormal matrix.
        mu: how much of the captured momentum Dion keeps.
        rank_fraction: Dion's rank as a fraction of min(out, in), rounded up.
        betas: of Lion and AdamW.
        weight_decay: decoupled: weights shrink by `lr * weight_decay` a step.
        seed: of random numbers.
        orthonormalization: see `orthonormal_columns`.

    Raises:
        ValueError: an unknown key or algorithm, a value out of range, a vector for Dion, or a
            parameter that stands twice.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        algorithm: str = "dion",
        lr: float = 0.01,
        mu: float = 0.95,
        rank_fraction: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.01,
        seed: int = 0,
        orthonormalization: Orthonormalization = "auto",
    ) -> None:
        self.seed = seed
        self.orthonormalization = orthonormalization
        defaults = {
            "algorithm": algorithm,
            "lr": lr,
            "mu": mu,
            "rank_fraction": rank_fraction,
            "betas": betas,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.add_param_group`; checks the group."""
        unknown = param_group.keys() - self.defaults.keys() - {"params", "lr_scale"}
        if unknown:
            allowed = ", ".join([*self.defaults, "lr_scale"])
            raise ValueError(f"unknown group keys {sorted(unknown)} (allowed: {allowed})")
        super().add_param_group(param_group)
        _check_group(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        place = -1
        for group in self.param_groups:
            for parameter in group["params"]:
                place += 1
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "step" not in state:
                    state["step"] = torch.zeros(())
                match group["algorithm"]:
                    case "dion":
                        self._dion(parameter, group, state, place)
                    case "lion":
                        _lion(parameter, group, state)
                    case _:
                        _adamw(parameter, group, state)
                state["step"] += 1
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores `state_dict`; its tensors may be whole where parameters are sharded.

        The base class would round state to the parameters' dtype.
        """
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if name != "step":
                    value = value.detach().to(parameter.device, copy=True)
                    self.state[parameter][name] = _like_parameter(parameter, name, value)

    def _dion(
        self, parameter: nn.Parameter, group: dict[str, Any], state: dict[str, Any], place: int
    ) -> None:
        """One power iteration, error feedback and step; equal to algorithm 1 of the paper."""
        matrix = RowMatrix.of(parameter)
        tall, wide = matrix.tall, matrix.wide
        if "momentum" not in state:
            shape = (matrix.rows.count, matrix.num_inputs)
            momentum = torch.zeros(shape, dtype=matrix.dtype, device=parameter.device)
            state["momentum"] = matrix.as_rows(momentum)
            state["Q"] = self._random_basis(matrix, group, state, place)
        momentum, basis = local_part(state["momentum"]), local_part(state["Q"])
        gradient = local_part(parameter.grad).reshape(momentum.shape).to(momentum.dtype)
        momentum.add_(gradient)
        oriented = momentum.T if matrix.is_transposed else momentum  # (m, n), m >= n
        product = wide.sum(oriented @ basis)
        generator = self._generator(place, state, SKETCH, parameter.device)
        left = orthonormal_columns(product, tall, generator, self.orthonormalization)  # P
        right = tall.sum(oriented.T @ left)  # R
        oriented.addmm_(left, right.T, alpha=-(1 - group["mu"]))
        squares = torch.stack((right.square().sum(0), basis.square().sum(0)))
        norms, kept_norms = wide.sum(squares).sqrt()
        floor = NULL_FLOOR if int(state["step"]) else FIRST_NULL_FLOOR
        null = norms <= floor * torch.finfo(norms.dtype).eps * norms.max()
        directions = right / (norms + NORM_EPSILON)
        basis.copy_(torch.where(null, basis / (kept_norms + NORM_EPSILON), directions))
        directions = torch.where(null, 0.0, directions)
        update = directions @ left.T if matrix.is_transposed else left @ directions.T
        scale = group["lr"] * math.sqrt(matrix.rows.total / matrix.num_inputs)
        weight = local_part(parameter)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update.view(weight.shape).to(weight.dtype), alpha=-scale)

    def _random_basis(
        self, matrix: RowMatrix, group: dict[str, Any], state: dict[str, Any], place: int
    ) -> Tensor:
        """Q before the first step: Gaussian, made on the CPU so that it is one for all devices."""
        smaller = min(matrix.rows.total, matrix.num_inputs)
        rank = min(smaller, math.ceil(group["rank_fraction"] * smaller))
        generator = self._generator(place, state, START, torch.device("cpu"))
        whole = torch.randn(matrix.wide.total, rank, generator=generator).to(matrix.dtype)
        rows = whole[matrix.wide.start : matrix.wide.start + matrix.wide.count]
        rows = rows.to(matrix.parameter.device)
        return matrix.as_rows(rows) if matrix.is_transposed else matrix.as_replica(rows)

    def _generator(
        self, place: int, state: dict[str, Any], stream: int, device: torch.device
    ) -> torch.Generator:
        seed = hash_integer(self.seed, place, int(state["step"]), stream)
        return torch.Generator(device).manual_seed(seed)


def _check_group(group: dict[str, Any]) -> None:
    if group["algorithm"] not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {ALGORITHMS}, got {group['algorithm']!r}")
    for name, low, high in (("mu", 0, 1), ("rank_fraction", 0, 1)):
        if not low <= group[name] <= high or (name == "rank_fraction" and group[name] == 0):
            raise ValueError(f"{name} must lie in [0, 1] (a rank above 0), got {group[name]}")
    if group["lr"] < 0 or group["weight_decay"] < 0:
        raise ValueError(
            f"lr and weight_decay must not be negative, got {group['lr']} and "
            f"{group['weight_decay']}"
        )
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas must lie in [0, 1), got {group['betas']}")
    if len({id(parameter) for parameter in group["params"]}) < len(group["params"]):
        raise ValueError("a parameter stands twice in a group")
    shapes = [tuple(p.shape) for p in group["params"] if p.ndim < 2]
    if group["algorithm"] == "dion" and shapes:
        raise ValueError(f"dion is for tensors of two or more dimensions, got shape {shapes[0]}")


def _like_parameter(parameter: nn.Parameter, name: str, state: Tensor) -> Tensor:
    """Lays out a whole state tensor as the sharded parameter wants it."""
    if not isinstance(parameter, DTensor) or isinstance(state, DTensor):
        return state
    placements = parameter.placements
    if name == "Q" and not RowMatrix.of(parameter).is_transposed:
        placements = tuple(Replicate() for _ in placements)
    part = distribute_tensor(state, parameter.device_mesh, placements, src_data_rank=None)
    return part.clone()  # a view would keep the whole alive


def _moment(parameter: nn.Parameter, state: dict[str, Any], name: str) -> Tensor:
    """A state tensor of the parameter's shape, zero at first."""
    if name not in state:
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        state[name] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    return local_part(state[name])


def _lion(parameter: nn.Parameter, group: dict[str, Any], state: dict[str, Any]) -> None:
    """Lion (arXiv 2302.06675): the sign of an interpolated momentum."""
    momentum = _moment(parameter, state, "momentum")
    weight, gradient = local_part(parameter), local_part(parameter.grad).to(momentum.dtype)
    beta_1, beta_2 = group["betas"]
    direction = momentum.lerp(gradient, 1 - beta_1).sign_()
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    weight.add_(direction.to(weight.dtype), alpha=-group["lr"])
    momentum.lerp_(gradient, 1 - beta_2)


def _adamw(parameter: nn.Parameter, group: dict[str, Any], state: dict[str, Any]) -> None:
    """AdamW (arXiv 1711.05101)."""
    mean, square = _moment(parameter, state, "mean"), _moment(parameter, state, "square")
    weight, gradient = local_part(parameter), local_part(parameter.grad).to(mean.dtype)
    beta_1, beta_2 = group["betas"]
    step = int(state["step"]) + 1
    mean.lerp_(gradient, 1 - beta_1)
    square.lerp_(gradient.square(), 1 - beta_2)
    root = (square / (1 - beta_2**step)).sqrt_().add_(ADAM_EPSILON)
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    update = mean / root
    weight.add_(update.to(weight.dtype), alpha=-group["lr"] / (1 - beta_1**step))


@dataclass(frozen=True)
class RowMatrix:
    """A parameter as `(out, in)` of which this process holds rows, whole if it is no DTensor.

    The update runs on the orientation (m, n) with m >= n; `tall` are the m rows, `wide` the n.
    """

    parameter: nn.Parameter
    rows: Rows  # of `out`
    num_inputs: int

    @classmethod
    def of(cls, parameter: nn.Parameter) -> RowMatrix:
        total = parameter.shape[0]
        num_inputs = parameter.numel() // total
        if not isinstance(parameter, DTensor):
            return cls(parameter, Rows.all(total), num_inputs)
        mesh = parameter.device_mesh
        sharded = [axis for axis, how in enumerate(parameter.placements) if how != Replicate()]
        if not sharded:
            return cls(parameter, Rows.all(total), num_inputs)
        if len(sharded) > 1 or parameter.placements[sharded[0]] != Shard(0):
            raise ValueError(
                f"dion works on rows: placements must be one Shard(0) and Replicate, got "
                f"{parameter.placements}"
            )
        most = math.ceil(total / mesh.size(sharded[0]))
        start = min(total, mesh.get_local_rank(sharded[0]) * most)
        count = min(most, total - start)
        rows = Rows(start, count, total, most, mesh.get_group(sharded[0]))
        return cls(parameter, rows, num_inputs)

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.parameter.dtype, torch.float32)

    @property
    def is_transposed(self) -> bool:
        return self.rows.total < self.num_inputs

    @property
    def tall(self) -> Rows:
        return Rows.all(self.num_inputs) if self.is_transposed else self.rows

    @property
    def wide(self) -> Rows:
        return self.rows if self.is_transposed else Rows.all(self.num_inputs)

    def as_rows(self, local: Tensor) -> Tensor:
        """State whose rows lie where the parameter's do."""
        if not isinstance(self.parameter, DTensor):
            return local
        return self._distribute(local, self.rows.total, self.parameter.placements)

    def as_replica(self, local: Tensor) -> Tensor:
        """State that every process holds whole."""
        if not isinstance(self.parameter, DTensor):
            return local
        everywhere = tuple(Replicate() for _ in self.parameter.placements)
        return self._distribute(local, len(local), everywhere)

    def _distribute(
        self, local: Tensor, num_rows: int, placements: tuple[Placement, ...]
    ) -> Tensor:
        assert isinstance(self.parameter, DTensor)
        width = local.shape[1]
        distributed: Tensor = DTensor.from_local(
            local.contiguous(),
            self.parameter.device_mesh,
            placements,
            shape=torch.Size((num_rows, width)),
            stride=(width, 1),
        )
        return distributed


def local_part(x: Tensor | None) -> Tensor:
    """What this process holds of `x`; writing to it writes to `x`."""
    assert x is not None
    local: Tensor = x.to_local() if isinstance(x, DTensor) else x
    return local


@dataclass(frozen=True)
class Rows:
    """The rows [start, start + count) of `total` that this process holds.

    Args:
        group: who holds the others, `most` rows at most; None: all are here.
    """

    start: int
    count: int
    total: int
    most: int
    group: dist.ProcessGroup | None = None

    @classmethod
    def all(cls, total: int) -> Rows:
        return cls(0, total, total, total)

    def sum(self, x: Tensor) -> Tensor:
        """Sum of everybody's `x`, which may be overwritten."""
        if self.group is not None:
            x = x.contiguous()
            dist.all_reduce(x, group=self.group)
        return x

    def gather(self, x: Tensor) -> tuple[Tensor, int]:
        """Everybody's `x` of one shape on top of each other, and where our own begins."""
        if self.group is None:
            return x, 0
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts), dist.get_rank(self.group) * len(x)


def orthonormal_columns(
    matrix: Tensor, rows: Rows, generator: torch.Generator, method: Orthonormalization = "auto"
) -> Tensor:
    """Our rows of an orthonormal basis of the columns of the whole matrix.

    Args:
        matrix: `(rows.count, r)`, our rows of a matrix `(rows.total, r)`.
        generator: of the sketch of "rcqr"; in the same state on all processes.
        method: "qr" is Householder's; "rcqr" a triangle from a Gaussian sketch and one Cholesky
            pass, faster on a GPU; "auto" chooses by device. A matrix that is not taller than wide,
            and one whose columns are dependent, always get "qr".
    """
    if method == "auto":
        method = "rcqr" if matrix.device.type == "cuda" else "qr"
    if method == "rcqr" and rows.total > matrix.shape[1]:
        basis = _sketched(matrix, rows, generator)
        if basis is not None:
            return basis
    return _householder(matrix, rows)


def _householder(matrix: Tensor, rows: Rows) -> Tensor:
    """QR; over several processes the QR of the stacked triangles of everybody's rows."""
    basis, triangle = torch.linalg.qr(matrix)
    if rows.group is None:
        return basis
    height = min(rows.most, matrix.shape[1])
    padded = matrix.new_zeros(height, matrix.shape[1])
    padded[: len(triangle)] = triangle
    stacked, first = rows.gather(padded)
    return basis @ torch.linalg.qr(stacked).Q[first : first + len(triangle)]


def _sketched(matrix: Tensor, rows: Rows, generator: torch.Generator) -> Tensor | None:
    """Randomised Cholesky QR; None when the columns are dependent."""
    width = matrix.shape[1]
    height = SKETCH_MULTIPLE * math.ceil(SKETCH_FACTOR * width / SKETCH_MULTIPLE)
    sketch = torch.randn(
        height, rows.total, generator=generator, device=matrix.device, dtype=matrix.dtype
    )
    sketch = sketch[:, rows.start : rows.start + rows.count] / math.sqrt(height)
    triangle = torch.linalg.qr(rows.sum(sketch @ matrix), mode="r").R
    basis = torch.linalg.solve_triangular(triangle, matrix, upper=True, left=False)
    factor, info = torch.linalg.cholesky_ex(rows.sum(basis.T @ basis), upper=True)
    # Sums are equal on all processes, so all decide alike.
    if int(info) or not bool(torch.isfinite(factor).all()):
        return None
    return torch.linalg.solve_triangular(factor, basis, upper=True, left=False)

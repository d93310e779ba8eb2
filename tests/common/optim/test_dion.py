"""Dion against an oracle, its other rules against references, and resumption."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lambda24.common.optim import dion
from lambda24.common.optim.dion import Dion
from tests.common.optim.dion_net import Net, build, train

SHAPES = [(12, 7), (7, 12), (9, 9), (4, 3, 2, 2)]


def oracle(
    weight: np.ndarray,
    gradients: list[np.ndarray],
    basis: np.ndarray,
    *,
    lr: float,
    mu: float = 0.95,
    weight_decay: float = 0.01,
) -> np.ndarray:
    """Algorithm 1 of the paper in float64, on the orientation with more rows."""
    num_outputs, num_inputs = weight.shape
    flip = num_outputs < num_inputs
    weight = weight.T if flip else weight
    momentum = np.zeros_like(weight)
    for gradient in gradients:
        momentum = momentum + (gradient.T if flip else gradient)
        left = np.linalg.qr(momentum @ basis)[0]
        right = momentum.T @ left
        momentum = momentum - (1 - mu) * left @ right.T
        basis = right / (np.linalg.norm(right, axis=0) + 1e-8)
        weight = weight * (1 - lr * weight_decay)
        weight = weight - lr * math.sqrt(num_outputs / num_inputs) * left @ basis.T
    return weight.T if flip else weight


def random_gradients(shape: tuple[int, ...], count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank_fraction", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("method", ["qr", "rcqr"])
def test_twenty_steps_equal_the_oracle(
    shape: tuple[int, ...], rank_fraction: float, method: str
) -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        gradients = random_gradients(shape, 20)
        # Weights of a network's size: near 2, fp32 rounds by 1e-7 a step whatever the optimizer.
        parameter = nn.Parameter(0.1 * random_gradients(shape, 1)[0].to(dtype))
        start = parameter.detach().double().flatten(1).numpy()
        optimizer = Dion(
            [parameter],
            rank_fraction=rank_fraction,
            seed=3,
            orthonormalization=method,  # type: ignore[arg-type]
        )
        # The first basis is read off a copy that took a step of zero gradient.
        probe = Dion(
            [nn.Parameter(parameter.detach().clone())], rank_fraction=rank_fraction, seed=3
        )
        basis = first_basis(probe)
        expected = oracle(start, [g.flatten(1).numpy() for g in gradients], basis, lr=0.01)
        for gradient in gradients:
            parameter.grad = gradient.to(dtype)
            optimizer.step()
        difference = np.abs(parameter.detach().double().flatten(1).numpy() - expected).max()
        assert difference < tolerance
        smaller = min(start.shape)
        assert optimizer.state[parameter]["Q"].shape[1] == math.ceil(rank_fraction * smaller)
        assert optimizer.state[parameter]["momentum"].dtype == dtype


def first_basis(optimizer: Dion) -> np.ndarray:
    """Q as it was made; a step with zero gradient only normalises its columns."""
    parameter = optimizer.param_groups[0]["params"][0]
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer.state[parameter]["Q"].double().numpy()


def test_full_rank_is_the_orthogonal_factor_of_the_momentum() -> None:
    """With mu = 0 the power iteration converges on a repeated gradient: the step is U V^T."""
    gradient = random_gradients((6, 6), 1)[0]
    parameter = nn.Parameter(torch.zeros(6, 6, dtype=torch.float64))
    optimizer = Dion([parameter], lr=1.0, mu=0.0, weight_decay=0.0)
    for _ in range(400):
        before = parameter.detach().clone()
        parameter.grad = gradient.clone()
        optimizer.step()
    u, _, v = torch.linalg.svd(gradient)
    torch.testing.assert_close(before - parameter.detach(), u @ v, rtol=0, atol=1e-6)
    assert optimizer.state[parameter]["momentum"].abs().max() < 1e-10  # nothing is left behind


def test_a_wide_matrix_is_its_transpose_scaled() -> None:
    gradients = random_gradients((12, 5), 4)
    tall, wide = (nn.Parameter(torch.zeros(s, dtype=torch.float64)) for s in ((12, 5), (5, 12)))
    for parameter, flip in ((tall, False), (wide, True)):
        optimizer = Dion([parameter], rank_fraction=0.5)
        for gradient in gradients:
            parameter.grad = gradient.T.clone() if flip else gradient.clone()
            optimizer.step()
    torch.testing.assert_close(wide.detach().T * (12 / 5), tall.detach())


@pytest.mark.parametrize("method", ["qr", "rcqr"])
def test_a_zero_gradient_only_decays(method: Any) -> None:
    parameter = nn.Parameter(torch.ones(6, 4))
    optimizer = Dion([parameter], lr=0.1, weight_decay=0.5, orthonormalization=method)
    parameter.grad = torch.zeros(6, 4)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((6, 4), 0.95))
    norms = optimizer.state[parameter]["Q"].norm(dim=0)
    torch.testing.assert_close(norms, torch.ones(4))
    parameter.grad = torch.randn(6, 4)
    optimizer.step()
    assert torch.isfinite(parameter).all()
    assert (parameter.detach() - 0.95 * 0.95).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["qr", "rcqr"])
def test_a_gradient_of_low_rank_stays_finite(method: Any) -> None:
    parameter = nn.Parameter(torch.zeros(200, 8))
    optimizer = Dion([parameter], orthonormalization=method)
    for _ in range(3):
        parameter.grad = torch.ones(200, 8)
        optimizer.step()
    assert torch.isfinite(parameter).all()


@pytest.mark.parametrize("method", ["qr", "rcqr"])
@pytest.mark.parametrize("shape", [(192, 32), (32, 192), (48, 48)], ids=str)
def test_a_step_lies_in_the_span_of_low_rank_gradients(shape: tuple[int, int], method: str) -> None:
    """As AdaLN's weights have them: five classes, whatever the width."""
    classes = torch.randn(5, shape[1], generator=torch.Generator().manual_seed(1)).double()
    span = torch.linalg.qr(classes.T).Q
    parameter = nn.Parameter(torch.zeros(shape))
    optimizer = Dion([parameter], lr=1.0, weight_decay=0.0, seed=2, orthonormalization=method)  # type: ignore[arg-type]
    for signals in random_gradients((shape[0], 5), 6):
        before = parameter.detach().clone()
        parameter.grad = (signals @ classes).float()
        optimizer.step()
        step = (parameter.detach() - before).double() / math.sqrt(shape[0] / shape[1])
        assert (step - step @ span @ span.T).norm() < 1e-4 * step.norm()
        assert 1.5 < float(step.norm()) <= math.sqrt(5) + 1e-4  # five columns of length one or less
        norms = optimizer.state[parameter]["Q"].norm(dim=0)
        torch.testing.assert_close(norms, torch.ones_like(norms))


def test_a_random_basis_lets_no_noise_through() -> None:
    """Some first steps lose most of the precision: noise then reaches 500 epsilons."""
    for seed in range(30):
        draw = torch.Generator().manual_seed(seed)
        parameter = nn.Parameter(torch.zeros(96, 24))
        parameter.grad = torch.randn(96, 8, generator=draw) @ torch.randn(8, 24, generator=draw)
        Dion([parameter], lr=1.0, weight_decay=0.0, seed=seed).step()
        norm = float(parameter.detach().norm()) / math.sqrt(96 / 24)
        assert norm <= math.sqrt(8) + 1e-3  # eight columns of length one


def test_gradients_of_full_rank_know_no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = [nn.Parameter(torch.zeros(24, 24)) for _ in range(2)]
    for parameter, floor in zip(parameters, (1, 0), strict=True):
        monkeypatch.setattr(dion, "NULL_FLOOR", floor * dion.NULL_FLOOR)
        monkeypatch.setattr(dion, "FIRST_NULL_FLOOR", floor * dion.FIRST_NULL_FLOOR)
        optimizer = Dion([parameter])
        for gradient in random_gradients((24, 24), 8):
            parameter.grad = gradient.float()
            optimizer.step()
    assert torch.equal(*parameters)


def test_a_null_direction_comes_alive() -> None:
    """What a gradient lacked for a while is learned as soon as it has it."""
    parameter = nn.Parameter(torch.zeros(40, 16))
    optimizer = Dion([parameter], lr=1.0, mu=0.0, weight_decay=0.0)
    narrow, whole = (g.float() for g in random_gradients((40, 16), 2))
    narrow[:, 3:] = 0
    for gradient, rank in ((narrow, 3), (narrow, 3), (whole, 16), (whole, 16)):
        before = parameter.detach().clone()
        parameter.grad = gradient.clone()
        optimizer.step()
        assert int(torch.linalg.matrix_rank(before - parameter.detach(), rtol=1e-3)) == rank


def test_lion_and_adamw() -> None:
    lion, adamw, reference = (nn.Parameter(torch.full((5,), 2.0)) for _ in range(3))
    optimizer = Dion(
        [{"params": [lion], "algorithm": "lion"}, {"params": [adamw], "algorithm": "adamw"}],
        lr=0.1,
        weight_decay=0.2,
    )
    oracle = torch.optim.AdamW([reference], lr=0.1, betas=(0.9, 0.95), weight_decay=0.2)
    expected, momentum = torch.full((5,), 2.0), torch.zeros(5)
    for gradient in random_gradients((5,), 6):
        for parameter in (lion, adamw, reference):
            parameter.grad = gradient.float()
        optimizer.step()
        oracle.step()
        direction = (0.9 * momentum + 0.1 * gradient.float()).sign()
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * direction
        momentum = 0.95 * momentum + 0.05 * gradient.float()
    torch.testing.assert_close(lion.detach(), expected)
    torch.testing.assert_close(adamw.detach(), reference.detach())


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"algorithm": "sgd"}, r"algorithm must be one of .*'dion'.*got 'sgd'"),
        ({"beta1": 0.5}, r"unknown group keys \['beta1'\]"),
        ({"rank_fraction": 0.0}, r"rank_fraction .* got 0\.0"),
        ({"mu": 1.5}, r"mu .* got 1\.5"),
        ({"betas": (0.9, 1.0)}, r"betas .* got \(0\.9, 1\.0\)"),
        ({"params": [nn.Parameter(torch.zeros(3))]}, r"dion is for tensors .* got shape \(3,\)"),
    ],
)
def test_bad_groups(group: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dion([{"params": [nn.Parameter(torch.zeros(3, 3))], **group}])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumption_is_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    whole, first = Net().to(dtype), Net().to(dtype)
    optimizer = build(whole)
    train(whole, optimizer, range(6))
    stopped = build(first)
    train(first, stopped, range(3))
    torch.save({"net": first.state_dict(), "optimizer": stopped.state_dict()}, tmp_path / "s.pt")
    state = torch.load(tmp_path / "s.pt", weights_only=True)
    torch.manual_seed(99)  # global randomness must not matter
    second = Net().to(dtype)
    second.load_state_dict(state["net"])
    resumed = build(second)
    resumed.load_state_dict(state["optimizer"])
    train(second, resumed, range(3, 6))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
        for name, value in optimizer.state[a].items():
            assert value.dtype == torch.float32
            assert torch.equal(value, resumed.state[b][name])


def test_global_randomness_is_left_alone() -> None:
    before = torch.get_rng_state()
    net = nn.Linear(3, 3)
    torch.set_rng_state(before)
    optimizer = Dion([net.weight], orthonormalization="rcqr")
    net.weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), before)

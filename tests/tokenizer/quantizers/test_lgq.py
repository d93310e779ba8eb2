from __future__ import annotations

import pytest
import torch

from lambda24.tokenizer.quantizers import build_quantizer
from lambda24.tokenizer.quantizers.lgq import soft_assignment


def dense(z: torch.Tensor, table: torch.Tensor, tau: float) -> tuple[torch.Tensor, ...]:
    distance = (z[:, None] - table).square().sum(-1)
    p = (-distance / tau).softmax(-1)
    return p @ table, p.mean(0), p.square().sum(-1).mean()


def test_chunks_change_nothing() -> None:
    z = torch.randn(70, 5, dtype=torch.float64, requires_grad=True)
    table = torch.randn(33, 5, dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(0.7, dtype=torch.float64)
    weights = torch.randn(70, 5, dtype=torch.float64)

    def objective(outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        soft, usage, peak = outputs
        return (soft * weights).sum() + usage.square().sum() + peak

    expected = dense(z, table, 0.7)
    gradients = torch.autograd.grad(objective(expected), [z, table])
    for chunk_elements in (1, 33 * 9, 10**6):
        outputs = soft_assignment(z, table, tau, chunk_elements)
        for a, b in zip(outputs, expected, strict=True):
            torch.testing.assert_close(a, b)
        for a, b in zip(
            torch.autograd.grad(objective(outputs), [z, table]), gradients, strict=True
        ):
            torch.testing.assert_close(a, b)


def test_gradient_is_two_over_tau_times_the_covariance() -> None:
    z = torch.randn(1, 4, dtype=torch.float64)
    table = torch.randn(12, 4, dtype=torch.float64)
    tau = torch.tensor(0.9, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: soft_assignment(x, table, tau, 5)[0], z
    ).reshape(4, 4)
    p = (-(z - table).square().sum(-1) / tau).softmax(-1)
    centred = table - p @ table
    torch.testing.assert_close(jacobian, 2 / tau * (p[:, None] * centred).T @ centred)


def test_losses_by_brute_force() -> None:
    quantizer = build_quantizer({"kind": "lgq", "dim": 6, "codebook_size": 40})
    z = torch.randn(80, 6, requires_grad=True)
    quantized = quantizer(z)
    table = quantizer.codebook.detach().clone().requires_grad_()
    distance = torch.cdist(z, table).square()
    assert torch.equal(quantized.indices[:, 0], distance.argmin(-1))
    tau = 0.5 * distance.amin(-1).mean().detach()
    torch.testing.assert_close(quantized.stats["tau"], tau)
    soft, usage, peak = dense(z, table, tau)
    hard = table[distance.argmin(-1)]
    q = soft + (hard - soft).detach()
    expected = {
        "distortion": (q - z).square().mean(),
        "peak": 1 - peak,
        "usage": 40 * usage.square().sum() - 1,
    }
    for name, value in expected.items():
        torch.testing.assert_close(quantized.losses[name], value)
    ours = torch.autograd.grad(
        quantizer.total_loss(quantized.losses) + quantized.z_q.sin().sum(), [z, quantizer.codebook]
    )
    total = expected["distortion"] + 0.005 * (expected["peak"] + expected["usage"])
    theirs = torch.autograd.grad(total + q.sin().sum(), [z, table])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_temperature_falls_linearly_and_follows_the_scale() -> None:
    quantizer = build_quantizer({"kind": "lgq", "dim": 6, "codebook_size": 40})
    z = torch.randn(80, 6)
    taus = {}
    for step in (0, 50, 100):
        quantizer.schedule(step, 101)
        taus[step] = quantizer(z).stats["tau"].item()
    assert taus[50] / taus[0] == pytest.approx(0.55, rel=1e-4)
    assert taus[100] / taus[0] == pytest.approx(0.1, rel=1e-4)
    base = quantizer(z)
    with torch.no_grad():
        quantizer.codebook *= 3
    scaled = quantizer(3 * z)
    torch.testing.assert_close(scaled.stats["tau"], 9 * base.stats["tau"])
    torch.testing.assert_close(scaled.losses["peak"], base.losses["peak"])


def test_identity_estimator_passes_gradients_through() -> None:
    quantizer = build_quantizer(
        {"kind": "lgq", "dim": 6, "codebook_size": 40, "estimator": "identity"}
    )
    z = torch.randn(10, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(quantizer(z).z_q.sum(), z)
    assert torch.equal(gradient, torch.ones_like(z))


def test_the_graph_holds_nothing_of_tokens_times_codes() -> None:
    quantizer = build_quantizer(
        {"kind": "lgq", "dim": 4, "codebook_size": 500, "chunk_elements": 500 * 50}
    )
    z = torch.randn(1000, 4, requires_grad=True)
    largest = 0

    def note(saved: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        quantized = quantizer(z)
    assert largest < 500 * 50
    (quantizer.total_loss(quantized.losses) + quantized.z_q.sum()).backward()
    assert z.grad is not None

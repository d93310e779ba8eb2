from __future__ import annotations

import torch

from lambda24.tokenizer.quantizers.base import straight_through, unit


def test_straight_through_keeps_the_code_exactly_for_huge_latents() -> None:
    code = torch.tensor([0.1, -0.7])
    path = torch.tensor([1e20, -3e7], requires_grad=True)
    z_q = straight_through(code, path)
    assert torch.equal(z_q, code)
    z_q.backward(torch.tensor([2.0, 5.0]))
    assert torch.equal(path.grad, torch.tensor([2.0, 5.0]))


def test_unit_survives_extreme_scales() -> None:
    z = torch.tensor([[3.0, 4.0]])
    for scale in (1e-38, 1e-20, 1.0, 1e20, 5e37):
        torch.testing.assert_close(unit(z * scale), torch.tensor([[0.6, 0.8]]))
    assert torch.equal(unit(torch.zeros(1, 2)), torch.zeros(1, 2))


def test_unit_has_the_projection_jacobian() -> None:
    z = torch.randn(5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(unit, z)
    direction = z / z.norm()
    expected = (torch.eye(5, dtype=z.dtype) - torch.outer(direction, direction)) / z.norm()
    torch.testing.assert_close(jacobian, expected)


def test_unit_gives_a_zero_row_no_gradient() -> None:
    z = torch.zeros(1, 3, requires_grad=True)
    unit(z).sum().backward()
    assert torch.equal(z.grad, torch.zeros(1, 3))

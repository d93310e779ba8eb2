"""Layers against the library's or their formulas."""

import pytest
import torch
from torch import nn

from lambda24.tokenizer.adversary.discriminators.layers import (
    Blur,
    EqualizedConv,
    EqualizedLinear,
    GroupedBatchNorm,
    advance_spectral_norms,
    append_deviation,
    leaky,
    spectral,
)


def test_spectral_norm_divides_by_the_largest_singular_value():
    torch.manual_seed(0)
    conv = spectral(nn.Conv2d(4, 6, 3))
    for _ in range(50):
        advance_spectral_norms(conv)
    assert torch.linalg.matrix_norm(conv.weight.flatten(1), ord=2).item() == pytest.approx(1)
    with torch.no_grad():
        conv.parametrizations.weight.original.mul_(5)
    before = [buffer.clone() for buffer in conv.buffers()]
    conv(torch.randn(2, 4, 5, 5))
    assert all(torch.equal(a, b) for a, b in zip(before, conv.buffers(), strict=True))


def test_spectral_norm_gradient_is_that_of_the_quotient():
    torch.manual_seed(0)
    conv = spectral(nn.Conv1d(3, 2, 1))
    for _ in range(300):
        advance_spectral_norms(conv)
    weight = conv.parametrizations.weight.original
    factors = torch.randn(2, 3)
    (found,) = torch.autograd.grad((conv.weight[..., 0] * factors).sum(), weight)
    matrix = weight.detach()[..., 0].clone().requires_grad_()
    loss = (matrix / torch.linalg.matrix_norm(matrix, ord=2) * factors).sum()
    torch.testing.assert_close(found[..., 0], torch.autograd.grad(loss, matrix)[0])


def test_grouped_batch_norm_is_batch_norm_of_each_group():
    x = torch.randn(6, 5, 7, generator=torch.Generator().manual_seed(0))
    norm = GroupedBatchNorm(5, 3)
    reference = nn.BatchNorm1d(5, track_running_stats=False)
    expected = torch.cat([reference(group) for group in x.split(3)])
    torch.testing.assert_close(norm(x), expected)
    with pytest.raises(ValueError, match="batch of 6 must be divisible by group_size 4"):
        GroupedBatchNorm(5, 4)(x)


def test_deviation_of_each_group():
    x = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    out = append_deviation(x, 2)
    assert torch.equal(out[:, :3], x)
    for group, result in zip(x.split(2), out[:, 3].split(2), strict=True):
        expected = group.std(dim=0, correction=0).mean()
        torch.testing.assert_close(result, expected.expand(2, 2, 2), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("layer", [EqualizedConv(64, 32, 3, padding=1), EqualizedLinear(576, 512)])
def test_equalized_layers_keep_the_variance(layer):
    torch.manual_seed(0)
    x = torch.randn(8, 64, 8, 8) if isinstance(layer, EqualizedConv) else torch.randn(64, 576)
    with torch.no_grad():
        assert layer(x)[..., 1:-1].std().item() == pytest.approx(1, abs=0.1)
        assert leaky(x).square().mean().item() == pytest.approx(1.04, abs=0.03)


def test_blur_keeps_constants_and_removes_the_finest_pattern():
    ones = torch.ones(1, 2, 8, 8)
    assert torch.allclose(Blur(stride=2, padding=1)(ones)[..., 1:-1, 1:-1], torch.ones(()))
    assert Blur(stride=2, padding=1)(ones).shape == (1, 2, 4, 4)
    stripes = ones * torch.tensor([1.0, -1.0]).repeat(4)
    assert Blur(stride=1, padding=0)(stripes).abs().max() < 1e-6

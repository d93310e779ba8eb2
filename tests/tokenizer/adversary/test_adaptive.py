"""The adaptive weight against its definition."""

import pytest
import torch

from lambda24.tokenizer.adversary.adaptive import adaptive_weight


def losses(weight, x):
    """Two losses of a last layer, the first far steeper than the second."""
    y = (weight @ x).tanh()
    return 10 * y.square().mean(), (y - 0.3).abs().pow(3).mean()


def central_differences(weight, x, which):
    gradient = torch.zeros_like(weight)
    for place in range(weight.numel()):
        step = torch.zeros_like(weight).flatten()
        step[place] = 1e-6
        step = step.view_as(weight)
        gradient.view(-1)[place] = (
            losses(weight + step, x)[which] - losses(weight - step, x)[which]
        ) / 2e-6
    return gradient


@pytest.fixture
def layer():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return weight, torch.randn(4, 6, generator=generator, dtype=torch.float64)


def test_it_is_the_ratio_of_finite_differences(layer):
    weight, x = layer
    norms = [central_differences(weight, x, which).norm() for which in (0, 1)]
    weight.requires_grad_()
    found = adaptive_weight(*losses(weight, x), weight)
    torch.testing.assert_close(found.double(), norms[0] / (norms[1] + 1e-6), rtol=1e-6, atol=0)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert weight.grad is None


def test_weighted_loss_has_the_gradient_norm_of_the_reference(layer):
    weight, x = layer
    weight.requires_grad_()
    reference, other = losses(weight, x)
    scaled = adaptive_weight(reference, other, weight) * other
    first, second = (
        torch.autograd.grad(loss, weight, retain_graph=True)[0].norm()
        for loss in (reference, scaled)
    )
    torch.testing.assert_close(first, second, rtol=1e-4, atol=0)


def test_it_is_bounded(layer):
    weight, x = layer
    weight.requires_grad_()
    reference, _ = losses(weight, x)
    assert adaptive_weight(reference, 0.0 * reference, weight) == 1e4
    assert adaptive_weight(reference, 1e-3 * reference, weight, maximum=5.0) == 5


def test_processes_share_the_weight_of_the_whole_batch(layer):
    weight, x = layer
    weight.requires_grad_()
    whole = adaptive_weight(*losses(weight, x), weight)
    halves = [
        [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses(weight, half)]
        for half in x.chunk(2, dim=1)
    ]
    means = iter([(a + b) / 2 for a, b in zip(*halves, strict=True)])
    shared = adaptive_weight(
        *losses(weight, x[:, :3]), weight, reduce_mean=lambda gradient: next(means)
    )
    torch.testing.assert_close(shared, whole)
    assert adaptive_weight(*losses(weight, x[:, :3]), weight) != whole

"""Tiled modulation and gated sum against their plain forms and definitions."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lambda24.generator.cpu_forms import adaln, tiles
from lambda24.generator.cpu_forms.adaln import add_gated, modulate, plain_add_gated, plain_modulate


def gradients(
    function: Callable[..., Tensor], arguments: list[Tensor], *rest: object
) -> list[Tensor]:
    """The value, then the gradient of a fixed random sum of it for every argument."""
    leaves = [argument.clone().requires_grad_() for argument in arguments]
    out = function(*leaves, *rest)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, leaves, weights.to(out.dtype))]


@pytest.fixture(params=[1, 48, 300, 1 << 20], autouse=True)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of one token, three tokens, two images, and one tile for all."""
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", request.param)
    monkeypatch.setattr(adaln, "SMALL_IMAGE", 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modulate_matches_the_plain_form(dtype: torch.dtype):
    x, scale, shift = torch.randn(5, 7, 16) * 3 + 1, torch.randn(5, 1, 16), torch.randn(5, 1, 16)
    tiled = gradients(modulate, [x, scale, shift], dtype)
    plain = gradients(plain_modulate, [x, scale, shift], dtype)
    assert tiled[0].dtype == dtype
    for one, two in zip(tiled, plain, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5)
    expected = F.layer_norm(x, (16,), eps=1e-6) * (1 + scale) + shift
    assert torch.allclose(modulate(x, scale, shift), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_gated_matches_the_plain_form(dtype: torch.dtype):
    x, branch, gamma = torch.randn(5, 7, 16), torch.randn(5, 7, 16), torch.randn(5, 1, 16)
    arguments = [x, branch.to(dtype), gamma]
    tiled, plain = gradients(add_gated, arguments), gradients(plain_add_gated, arguments)
    assert tiled[0].dtype == torch.float32
    for one, two in zip(tiled, plain, strict=True):
        assert one.dtype == two.dtype
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5)
    assert torch.allclose(tiled[0], x + gamma * arguments[1].float(), atol=1e-6)

"""The tiled normalisation and rotation against the plain one."""

import pytest
import torch

import generator.tiles
from generator.cosine import cosine_rotary, plain_cosine_rotary
from generator.embeddings import rope_table
from tokenizer.tokens import TokenSpec

SPEC = TokenSpec(scales=(1, 3), codebook_sizes=(8,), code_dim=4, latent_size=3)


@pytest.mark.parametrize("with_rope", [True, False])
@pytest.mark.parametrize("tile", [1, 1 << 20])
def test_values_and_gradients_match_the_plain_form(
    with_rope: bool, tile: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(generator.tiles, "TILE_ELEMENTS", tile)
    rope = rope_table(SPEC, 8) if with_rope else None
    heads = torch.randn(5, SPEC.length, 6, 8)
    grad = torch.randn(5, SPEC.length, 4, 8)
    results = []
    for function in (cosine_rotary, plain_cosine_rotary):
        leaf = heads.clone().requires_grad_()
        temperature = torch.tensor([4.0, 0.5, 1.0, 1.0], requires_grad=True)
        out = function(leaf[:, :, :4], temperature, rope)  # strided, as in attention
        gradients = torch.autograd.grad(out, (leaf, temperature), grad)
        results.append((out.detach(), *gradients))
    for tiled, plain in zip(*results, strict=True):
        assert torch.allclose(tiled, plain, rtol=1e-5, atol=1e-5)


def test_lengths_are_the_temperatures_and_dtype_is_kept():
    temperature = torch.tensor([4.0, 1.0])
    out = cosine_rotary(torch.randn(2, 3, 2, 8).bfloat16(), temperature, None)
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float().norm(dim=-1), temperature.expand(2, 3, 2), rtol=1e-2)


def test_zero_vectors_stay_finite():
    x = torch.zeros(1, 1, 1, 4, requires_grad=True)
    out = cosine_rotary(x, torch.ones(1), None)
    out.sum().backward()
    assert out.eq(0).all()
    assert x.grad is not None
    assert x.grad.isfinite().all()

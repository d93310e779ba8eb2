"""The tiled normalisation and rotation against the plain one."""

import pytest
import torch

from lambda24.generator.cpu_forms import tiles
from lambda24.generator.cpu_forms.cosine import cosine_heads, plain_cosine_heads
from lambda24.generator.embeddings import rope_table
from lambda24.tokenizer.tokens import TokenSpec

SPEC = TokenSpec(scales=(1, 3), codebook_sizes=(8,), code_dim=4, latent_size=3)


@pytest.mark.parametrize("with_rope", [True, False])
@pytest.mark.parametrize("tile", [1, 100, 1 << 20])
def test_values_and_gradients_match_the_plain_form(
    with_rope: bool, tile: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", tile)
    rope = rope_table(SPEC, 8) if with_rope else None
    heads = torch.randn(5, SPEC.length, 6, 8)
    grads = torch.randn(3, 5, SPEC.length, 2, 8)
    results = []
    for function in (cosine_heads, plain_cosine_heads):
        leaf = heads.clone().requires_grad_()
        temperature = torch.tensor([4.0, 0.5], requires_grad=True)
        found = function(leaf, temperature, rope)  # queries, keys, values
        gradients = torch.autograd.grad(found, (leaf, temperature), tuple(grads))
        results.append((*(part.detach() for part in found), *gradients))
    for tiled, plain in zip(*results, strict=True):
        assert torch.allclose(tiled, plain, rtol=1e-5, atol=1e-5)


def test_lengths_are_the_temperatures_and_dtype_is_kept():
    qkv = torch.randn(2, 3, 6, 8).bfloat16()
    q, k, v = cosine_heads(qkv, torch.tensor([4.0, 2.0]), None)
    assert q.dtype == k.dtype == torch.bfloat16
    assert torch.allclose(
        q.float().norm(dim=-1), torch.tensor([4.0, 2.0]).expand(2, 3, 2), rtol=1e-2
    )
    assert torch.allclose(k.float().norm(dim=-1), torch.ones(2, 3, 2), rtol=1e-2)
    assert torch.equal(v, qkv[:, :, 4:])


def test_zero_vectors_stay_finite():
    x = torch.zeros(1, 1, 3, 4, requires_grad=True)
    out = torch.cat(cosine_heads(x, torch.ones(1), None))
    out.sum().backward()
    assert out.eq(0).all()
    assert x.grad is not None
    assert x.grad.isfinite().all()

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lambda24.tokenizer.quantizers import build_quantizer


@pytest.mark.parametrize("renorm_output", [False, True])
def test_groups_are_looked_up_by_angle(renorm_output: bool) -> None:
    config = {"kind": "gsq", "dim": 12, "groups": 3, "codebook_size": 50}
    quantizer = build_quantizer({**config, "renorm_output": renorm_output})
    with torch.no_grad():
        quantizer.codebook *= torch.rand(50, 1) + 0.5  # rows that training moved off the sphere
    z = torch.randn(30, 12, requires_grad=True)
    table = quantizer.codebook.detach().clone().requires_grad_()
    quantized = quantizer(z)
    latent = F.normalize(z.reshape(30, 3, 4), dim=-1)
    indices = (latent @ F.normalize(table, dim=-1).T).argmax(-1)
    assert torch.equal(quantized.indices, indices)
    code = (F.normalize(table, dim=-1) if renorm_output else table)[indices]
    torch.testing.assert_close(quantized.code, code.reshape(30, 12))
    codebook_loss = (code - latent.detach()).square().mean()
    loss = codebook_loss + 0.25 * (code.detach() - latent).square().mean()
    ours = torch.autograd.grad(
        quantizer.total_loss(quantized.losses) + quantized.z_q.sin().sum(), [z, quantizer.codebook]
    )
    path = latent + (code - latent).detach()
    theirs = torch.autograd.grad(loss + path.sin().sum(), [z, table])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_rows_start_on_the_sphere() -> None:
    quantizer = build_quantizer({"kind": "gsq", "dim": 8, "codebook_size": 30})
    torch.testing.assert_close(quantizer.codebook.norm(dim=-1), torch.ones(30))


def test_radial_gradients_vanish() -> None:
    quantizer = build_quantizer({"kind": "gsq", "dim": 8, "groups": 2, "codebook_size": 30})
    z = torch.randn(20, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(quantizer(z).z_q.exp().sum(), z)
    radial = (gradient * z.detach()).reshape(20, 2, 4).sum(-1)
    assert radial.abs().max() < 1e-5

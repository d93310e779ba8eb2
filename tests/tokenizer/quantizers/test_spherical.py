from __future__ import annotations

import torch
import torch.nn.functional as F

from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.quantizers import build_quantizer


def test_leech_takes_the_code_of_largest_inner_product() -> None:
    quantizer = build_quantizer({"kind": "leech"})
    z = torch.randn(64, 24, generator=torch.Generator().manual_seed(0))
    quantized = quantizer(z)
    table = leech.codebook(torch.float32)
    best = (z.double() @ table.double().T).max(dim=-1).values
    torch.testing.assert_close((z * quantized.code).sum(-1).double(), best, rtol=1e-6, atol=0)
    assert quantizer.codebook_sizes == (196_560,)


def test_indices_ignore_the_norm() -> None:
    quantizer = build_quantizer({"kind": "leech"})
    z = torch.randn(50, 24)
    assert torch.equal(quantizer.encode(z), quantizer.encode(z * 1e-3))


def test_gradient_is_the_identity_or_the_normalisation() -> None:
    z = torch.randn(7, 24, requires_grad=True)
    weights = torch.randn(7, 24)
    (plain,) = torch.autograd.grad((build_quantizer({"kind": "leech"})(z).z_q * weights).sum(), z)
    assert torch.equal(plain, weights)
    normalising = build_quantizer({"kind": "leech", "normalize": True})
    (tangent,) = torch.autograd.grad((normalising(z).z_q * weights).sum(), z)
    (expected,) = torch.autograd.grad((F.normalize(z, dim=-1) * weights).sum(), z)
    torch.testing.assert_close(tangent, expected)


def test_commitment_measures_the_angle() -> None:
    quantizer = build_quantizer({"kind": "leech", "commitment_weight": 0.5})
    z = torch.randn(40, 24)
    quantized = quantizer(z)
    cosine = F.cosine_similarity(z, quantized.code, dim=-1)
    torch.testing.assert_close(quantized.losses["commitment"], (2 - 2 * cosine).mean() / 24)
    torch.testing.assert_close(quantized.stats["cosine"], cosine.mean())
    scaled = quantizer(3 * z).losses
    torch.testing.assert_close(scaled["commitment"], quantized.losses["commitment"])
    torch.testing.assert_close(quantizer.total_loss(scaled), scaled["commitment"] / 2)


def test_a_seed_is_part_of_a_random_code() -> None:
    config = {"kind": "spherical", "code": "random", "dim": 5, "size": 64}
    indices = torch.arange(64).unsqueeze(-1)
    first = build_quantizer(config).decode(indices)
    assert torch.equal(build_quantizer(config).decode(indices), first)
    assert not torch.equal(build_quantizer({**config, "seed": 1}).decode(indices), first)

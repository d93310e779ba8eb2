from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lambda24.tokenizer.quantizers import build_quantizer
from lambda24.tokenizer.quantizers.codebooks import kmeans, nearest_code, rotated


def test_lookup_matches_float64_brute_force() -> None:
    table = torch.randn(300, 9) * torch.rand(300, 1) * 4
    z = torch.randn(4, 500, 9)
    distance = torch.cdist(z.double(), table.double().expand(4, -1, -1))
    assert torch.equal(nearest_code(z, table), distance.argmin(-1))


def test_ties_go_to_the_lowest_row() -> None:
    table = torch.tensor([[5.0, 5.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    z = torch.tensor([[0.0, 3.0], [2.0, 0.0]])
    assert nearest_code(z, table).tolist() == [1, 1]


@pytest.mark.parametrize("cosine", [False, True])
def test_losses_and_gradients_by_hand(cosine: bool) -> None:
    quantizer = build_quantizer({"kind": "vq", "dim": 6, "codebook_size": 40, "cosine": cosine})
    z = torch.randn(25, 6, requires_grad=True)
    table = quantizer.codebook.detach().clone().requires_grad_()
    latent, codes = (F.normalize(z, dim=-1), F.normalize(table, dim=-1)) if cosine else (z, table)
    quantized = quantizer(z)
    code = codes[torch.cdist(latent, codes).argmin(-1)]
    expected = {
        "codebook": (code - latent.detach()).square().mean(),
        "commitment": (code.detach() - latent).square().mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(quantized.losses[name], value)
    weights = torch.randn(25, 6)
    total = quantizer.total_loss(quantized.losses) + (quantized.z_q * weights).sum()
    ours = torch.autograd.grad(total, [z, quantizer.codebook])
    path = latent + (code - latent).detach()
    reference = expected["codebook"] + 0.25 * expected["commitment"] + (path * weights).sum()
    theirs = torch.autograd.grad(reference, [z, table])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_rotation_carries_latents_and_gradients_onto_codes() -> None:
    path, code = torch.randn(50, 7, dtype=torch.float64), torch.randn(50, 7, dtype=torch.float64)
    path.requires_grad_()
    turned = rotated(path, code)
    torch.testing.assert_close(turned, code)
    weights = torch.randn_like(code)
    (gradient,) = torch.autograd.grad((turned * weights).sum(), path)
    # A rotation with scale |code| / |path| keeps lengths and the angle to the vector.
    scale = code.norm(dim=-1) / path.detach().norm(dim=-1)
    torch.testing.assert_close(gradient.norm(dim=-1), weights.norm(dim=-1) * scale)
    torch.testing.assert_close(
        F.cosine_similarity(gradient, path.detach()), F.cosine_similarity(weights, code)
    )


def test_kmeans_finds_separated_clusters() -> None:
    centres = 10 * torch.eye(5)
    z = centres.repeat_interleave(60, 0) + 0.1 * torch.randn(300, 5)
    found = kmeans(z, 40, iterations=10, seed=0)
    error = (z - found[nearest_code(z, found)]).square().sum(-1).mean()
    assert error < 5 * 0.01
    few = kmeans(z[:10], 64, iterations=3, seed=0)
    assert len(few.unique(dim=0)) == 64


def test_data_initialisation_happens_once() -> None:
    for config in ({"kind": "vq"}, {"kind": "vq", "cosine": True}, {"kind": "lgq"}):
        quantizer = build_quantizer({**config, "dim": 4, "codebook_size": 32})
        z = 50 + torch.randn(8, 100, 4)
        quantizer.init_from_data(z)
        placed = quantizer.codebook.detach().clone()
        assert quantizer(z).stats["cosine"] > 0.99
        quantizer.init_from_data(-z)
        assert torch.equal(quantizer.codebook, placed)
        restored = build_quantizer({**config, "dim": 4, "codebook_size": 32})
        restored.load_state_dict(quantizer.state_dict())
        restored.init_from_data(-z)
        assert torch.equal(restored.codebook, placed)

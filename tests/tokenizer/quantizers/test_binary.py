from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from lambda24.tokenizer.quantizers import build_quantizer


def all_vertices(num_bits: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=num_bits)))


@pytest.mark.parametrize("kind", ["bsq", "lfq"])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_entropies_equal_those_over_all_vertices(kind: str, temperature: float) -> None:
    config = {"kind": kind, "num_bits": 6, "group_bits": 6, "temperature": temperature}
    quantizer = build_quantizer(config)
    z = torch.randn(30, 6, requires_grad=True)
    losses = quantizer(z).losses
    latent = F.normalize(z.double(), dim=-1) if kind == "bsq" else z.double()
    vertices = all_vertices(6).double() / (6**0.5 if kind == "bsq" else 1)
    posterior = (2 * latent @ vertices.T / temperature).softmax(-1)
    sample = -(posterior * posterior.clamp_min(1e-300).log()).sum(-1).mean()
    mean = posterior.mean(0)
    batch = vertices.new_tensor(64.0).log() + (mean * mean.clamp_min(1e-300).log()).sum()
    assert losses["entropy_sample"].item() == pytest.approx(sample.item(), abs=1e-5)
    assert losses["entropy_batch"].item() == pytest.approx(batch.item(), abs=1e-5)
    (ours,) = torch.autograd.grad(losses["entropy_sample"] + losses["entropy_batch"], z)
    (reference,) = torch.autograd.grad(sample + batch, z)
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)


def test_groups_split_the_batch_entropy_only() -> None:
    z = torch.randn(50, 7)
    whole = build_quantizer({"kind": "bsq", "num_bits": 7, "group_bits": 7})(z).losses
    split = build_quantizer({"kind": "bsq", "num_bits": 7, "group_bits": 3})(z).losses
    torch.testing.assert_close(split["entropy_sample"], whole["entropy_sample"])
    # Groups cannot see dependences between them, so they report no more unevenness than there is.
    assert 0 < split["entropy_batch"] < whole["entropy_batch"]


def test_bits_are_most_significant_first() -> None:
    quantizer = build_quantizer({"kind": "lfq", "num_bits": 4})
    z = torch.tensor([[1.0, -2.0, 0.5, 0.1], [-1.0, 0.0, -0.5, 3.0]])
    assert quantizer.encode(z).tolist() == [[0b1011], [0b0001]]
    assert quantizer.decode(torch.tensor([[0b1000]])).tolist() == [[1, -1, -1, -1]]


def test_long_codes_fit_an_int64_or_split() -> None:
    z = torch.randn(20, 124)
    for config in ({"num_bits": 62}, {"num_bits": 124, "num_codebooks": 2}):
        quantizer = build_quantizer({"kind": "lfq", **config})
        indices = quantizer.encode(z[:, : quantizer.dim])
        assert int(indices.min()) >= 0
        assert torch.equal(quantizer.decode(indices), z[:, : quantizer.dim].sign())
        assert quantizer.bits == quantizer.dim


def test_gradients_are_the_identity_on_the_latent() -> None:
    z = torch.randn(9, 5, requires_grad=True)
    weights = torch.randn(9, 5)
    lfq, bsq = (build_quantizer({"kind": kind, "num_bits": 5}) for kind in ("lfq", "bsq"))
    (gradient,) = torch.autograd.grad((lfq(z).z_q * weights).sum(), z)
    assert torch.equal(gradient, weights)
    (gradient,) = torch.autograd.grad((bsq(z).z_q * weights).sum(), z)
    (expected,) = torch.autograd.grad((F.normalize(z, dim=-1) * weights).sum(), z)
    torch.testing.assert_close(gradient, expected)


def test_entropy_ramps_down_to_its_weight() -> None:
    config = {"entropy_weight": 0.1, "diversity_weight": 2.0, "commitment_weight": 0.5}
    quantizer = build_quantizer({"kind": "bsq", **config, "ramp_start": 3.0, "ramp_steps": 100})
    losses = quantizer(torch.randn(8, 18)).losses
    sample, batch, commitment = (
        losses[name].item() for name in ("entropy_sample", "entropy_batch", "commitment")
    )
    for step, factor in ((0, 3.0), (50, 2.0), (100, 1.0), (5000, 1.0)):
        quantizer.schedule(step, 10_000)
        expected = factor * (0.1 * sample + 0.2 * batch) + 0.5 * commitment
        assert quantizer.total_loss(losses).item() == pytest.approx(expected, rel=1e-5)


def test_a_hard_posterior_has_finite_gradients() -> None:
    quantizer = build_quantizer({"kind": "lfq", "num_bits": 9, "temperature": 1e-3})
    z = (100 * torch.randn(10, 9)).requires_grad_()
    quantizer.total_loss(quantizer(z).losses).backward()
    assert torch.isfinite(z.grad).all()

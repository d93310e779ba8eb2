from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lambda24.generator.heads import (
    CategoricalDistribution,
    LatticeDistribution,
    LatticeHead,
    LatticeHeadConfig,
    MixtureDistribution,
)
from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.tokens import TokenSpec

Gather = Callable[[Tensor], Tensor]
WIDTH = 16
SPEC = TokenSpec(scales=(1, 2), codebook_sizes=(leech.NUM_CODES,), code_dim=24, latent_size=2)


def trained_head(num_mixtures: int, spread: float = 0.5) -> LatticeHead:
    """A head in float64 whose scores differ by about `spread * sqrt(WIDTH)`."""
    torch.manual_seed(num_mixtures)
    head = LatticeHead(LatticeHeadConfig(num_mixtures=num_mixtures), WIDTH, SPEC)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    return head.double()


def mixed_scores(head: LatticeHead, hidden: Tensor, all_code_scores: Gather) -> Tensor:
    """log sum_k exp(m_k + score_k) of `hidden (N, W)`, `(N, 196560)`, from the layer's outputs."""
    outputs = hidden @ head.linear.weight.T + head.linear.bias
    num_mixtures = head.num_mixtures
    scores = outputs[:, : num_mixtures * 216].view(-1, num_mixtures, 24, 9)
    mixture = outputs[:, num_mixtures * 216 :] if num_mixtures > 1 else outputs.new_zeros(1, 1)
    joint = [all_code_scores(scores[:, k]) + mixture[:, k, None] for k in range(num_mixtures)]
    return torch.stack(joint).logsumexp(0)


@pytest.mark.parametrize("num_mixtures", [1, 2])
def test_loss_and_gradients_equal_the_sum_over_all_codes(
    num_mixtures: int, all_code_scores: Gather
) -> None:
    head = trained_head(num_mixtures)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    tokens = torch.tensor([[100], [50_000], [196_000]])
    loss = head.loss(hidden, tokens)
    scores = mixed_scores(head, hidden, all_code_scores)
    log_z = scores.logsumexp(1)
    nll = log_z - scores.gather(1, tokens).squeeze(1)
    torch.testing.assert_close(loss.log_z, log_z, rtol=0, atol=1e-10)
    torch.testing.assert_close(loss.nll, nll, rtol=0, atol=1e-10)
    inputs = (hidden, *head.parameters())
    gradients = torch.autograd.grad((loss.nll + 0.1 * loss.log_z**2).sum(), inputs)
    expected = torch.autograd.grad((nll + 0.1 * log_z**2).sum(), inputs)
    for gradient, exact in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_mixtures", [1, 2])
def test_logits_are_the_loss_for_every_code(num_mixtures: int, all_code_scores: Gather) -> None:
    head = trained_head(num_mixtures)
    hidden = torch.randn(2, 2, WIDTH, dtype=torch.float64)
    logits = head.logits(hidden)
    assert logits.shape == (2, 2, leech.NUM_CODES)
    expected = mixed_scores(head, hidden.flatten(0, 1), all_code_scores).view_as(logits)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    tokens = torch.randint(leech.NUM_CODES, (2, 2, 1))
    loss = head.loss(hidden, tokens)
    nll = -logits.log_softmax(-1).gather(-1, tokens).squeeze(-1)
    torch.testing.assert_close(loss.nll, nll, rtol=0, atol=1e-10)
    torch.testing.assert_close(loss.log_z, logits.logsumexp(-1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_mixtures", [1, 4])
def test_starts_near_uniform_in_float32_under_autocast(num_mixtures: int) -> None:
    head = LatticeHead(LatticeHeadConfig(num_mixtures=num_mixtures), 256, SPEC)
    hidden, tokens = torch.randn(200, 256), torch.randint(leech.NUM_CODES, (200, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head.loss(hidden, tokens)
    assert loss.nll.dtype == torch.float32
    uniform = torch.tensor(float(leech.NUM_CODES)).log()
    torch.testing.assert_close(loss.nll.mean(), uniform, rtol=0, atol=0.03)
    assert (loss.nll - uniform).abs().max() < 0.5


def test_guidance_and_temperature_equal_those_of_the_dense_logits() -> None:
    scores = torch.randn(2, 3, 24, 9, dtype=torch.float64)
    conditional, unconditional = LatticeDistribution(scores[0]), LatticeDistribution(scores[1])
    dense = CategoricalDistribution(conditional.logits())
    guided = conditional.guided(unconditional, 2.5)
    expected = dense.guided(CategoricalDistribution(unconditional.logits()), 2.5)
    assert isinstance(guided, LatticeDistribution)
    torch.testing.assert_close(guided.logits(), expected.logits(), rtol=0, atol=1e-10)
    tempered = guided.tempered(0.7)
    assert isinstance(tempered, LatticeDistribution)
    torch.testing.assert_close(
        tempered.logits(), expected.tempered(0.7).logits(), rtol=0, atol=1e-9
    )


def test_guidance_by_a_dense_distribution() -> None:
    scores = torch.randn(2, 24, 9, dtype=torch.float64)
    lattice, dense = LatticeDistribution(scores), CategoricalDistribution(torch.zeros(2, 196_560))
    guided = lattice.guided(dense, 3.0)
    torch.testing.assert_close(guided.logits(), 3 * lattice.logits())


def test_draws_keep_the_shape_of_the_batch() -> None:
    distribution = LatticeDistribution(torch.randn(2, 3, 24, 9))
    uniforms = torch.rand(2, 3, distribution.num_uniforms)
    draws = distribution.sample(uniforms)
    assert draws.shape == (2, 3, 1)
    assert torch.equal(
        draws[1, 2], LatticeDistribution(distribution.scores[1, 2]).sample(uniforms[1, 2])
    )
    with pytest.raises(ValueError, match=r"num_uniforms 5.*\(2, 3, 4\)"):
        distribution.sample(uniforms[..., :4])


def test_mixture_draws_each_component_as_often_as_its_mass() -> None:
    # Two point masses: component k sits on code codes[k], with weight exp(mixture_k) Z_k.
    codes = torch.tensor([1234, 150_000])
    cells = leech.codebook(torch.int64)[codes] + 4
    scores = torch.full((2, 24, 9), -40.0).scatter_(2, cells[..., None], 1.0)
    mixture = torch.tensor([0.0, 1.0])
    distribution = MixtureDistribution(scores.expand(2000, -1, -1, -1), mixture.expand(2000, -1))
    generator = torch.Generator().manual_seed(1)
    draws = distribution.sample(torch.rand(2000, distribution.num_uniforms, generator=generator))
    assert set(draws.flatten().tolist()) == set(codes.tolist())
    share = (draws == codes[1]).double().mean().item()
    assert share == pytest.approx(mixture.softmax(0)[1].item(), abs=0.03)


def test_mixture_guidance_and_temperature_are_dense() -> None:
    head = trained_head(2)
    conditional = head.distribution(torch.randn(2, WIDTH, dtype=torch.float64))
    unconditional = head.distribution(torch.randn(2, WIDTH, dtype=torch.float64))
    guided = conditional.guided(unconditional, 1.5)
    expected = 1.5 * conditional.logits() - 0.5 * unconditional.logits()
    torch.testing.assert_close(guided.logits(), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(conditional.tempered(2).logits(), conditional.logits() / 2)


def test_far_scores_are_finite_in_float32() -> None:
    head = LatticeHead(LatticeHeadConfig(num_mixtures=2), 4, SPEC)
    torch.nn.init.normal_(head.linear.weight, std=40)
    hidden = torch.randn(6, 4, requires_grad=True)
    loss = head.loss(hidden, torch.randint(leech.NUM_CODES, (6, 1)))
    (loss.nll + 1e-4 * loss.log_z**2).sum().backward()
    assert loss.nll.isfinite().all()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
    assert head.linear.weight.grad is not None
    assert head.linear.weight.grad.isfinite().all()


@pytest.mark.parametrize(("sizes", "dim"), [((16_384,), 24), ((196_560,), 16), ((196_560, 9), 24)])
def test_refuses_other_codebooks(sizes: tuple[int, ...], dim: int) -> None:
    spec = TokenSpec(scales=(1,), codebook_sizes=sizes, code_dim=dim, latent_size=1)
    with pytest.raises(ValueError, match=rf"196560.*24.*{sizes[0]}.*{dim}"):
        LatticeHead(LatticeHeadConfig(), WIDTH, spec)

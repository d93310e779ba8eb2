from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lambda24.generator.heads import (
    CategoricalDistribution,
    CoordinatesDistribution,
    CoordinatesHead,
    CoordinatesHeadConfig,
)
from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.tokens import TokenSpec

WIDTH = 16
SPEC = TokenSpec(scales=(1, 2), codebook_sizes=(leech.NUM_CODES,), code_dim=24, latent_size=2)


def trained_head() -> CoordinatesHead:
    torch.manual_seed(0)
    head = CoordinatesHead(CoordinatesHeadConfig(), WIDTH, SPEC)
    torch.nn.init.normal_(head.linear.weight, std=0.5)
    return head.double()


def test_loss_is_the_sum_of_24_cross_entropies() -> None:
    head = trained_head()
    hidden, tokens = torch.randn(2, 3, WIDTH), torch.randint(leech.NUM_CODES, (2, 3, 1))
    loss = head.loss(hidden, tokens)
    scores = (hidden.double() @ head.linear.weight.T + head.linear.bias).view(6, 24, 9)
    labels = leech.codebook(torch.int64)[tokens.flatten()] + 4
    expected = F.cross_entropy(scores.movedim(2, 1), labels, reduction="none").sum(1)
    torch.testing.assert_close(loss.nll, expected.view(2, 3), rtol=0, atol=1e-12)
    torch.testing.assert_close(loss.log_z, scores.logsumexp(2).sum(1).view(2, 3))


def test_code_loss_is_normalised_over_codes(all_code_scores: Callable[[Tensor], Tensor]) -> None:
    head = trained_head()
    hidden, tokens = torch.randn(3, WIDTH), torch.randint(leech.NUM_CODES, (3, 1))
    loss = head.code_loss(hidden, tokens)
    distribution = head.distribution(hidden)
    logits = all_code_scores(distribution.scores)
    expected = -logits.log_softmax(1).gather(1, tokens).squeeze(1)
    torch.testing.assert_close(loss.nll, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(distribution.logits(), logits, rtol=0, atol=1e-10)
    mass = (loss.log_z - head.loss(hidden, tokens).log_z).exp()
    independent = (logits - distribution.scores.logsumexp(2).sum(1, keepdim=True)).exp()
    torch.testing.assert_close(mass, independent.sum(1), rtol=1e-9, atol=0)
    assert (mass < 1).all()


def test_draws_are_the_nearest_codes_of_independent_coordinates() -> None:
    codes = torch.randint(leech.NUM_CODES, (100,), generator=torch.Generator().manual_seed(1))
    vectors = leech.codebook(torch.int64)[codes]
    scores = torch.full((100, 24, 9), -50.0).scatter_(2, (vectors + 4)[..., None], 50.0)
    # One coordinate of a type 4 code wrong by one: the code is still the nearest.
    distribution = CoordinatesDistribution(scores)
    uniforms = torch.rand(100, distribution.num_uniforms)
    assert torch.equal(distribution.sample(uniforms).squeeze(1), codes)
    scores[:, 5] = torch.full((100, 9), -50.0)
    wrong = (vectors[:, 5] + vectors[:, 5].sign()).clamp(-4, 4)
    scores[:, 5].scatter_(1, (wrong + 4)[:, None], 50.0)
    drawn = CoordinatesDistribution(scores).sample(uniforms).squeeze(1)
    target = vectors.clone()
    target[:, 5] = wrong
    assert torch.equal(drawn, leech.nearest(target.float()))
    zero = torch.full((1, 24, 9), -50.0)
    zero[..., 4] = 50
    assert CoordinatesDistribution(zero).sample(torch.rand(1, 24)).shape == (1, 1)


def test_guidance_and_temperature() -> None:
    first, second = torch.randn(2, 2, 24, 9, dtype=torch.float64)
    guided = CoordinatesDistribution(first).guided(CoordinatesDistribution(second), 2.0)
    assert isinstance(guided, CoordinatesDistribution)
    torch.testing.assert_close(guided.scores, 2 * first - second)
    torch.testing.assert_close(guided.tempered(0.5).logits(), 2 * guided.logits())
    dense = CategoricalDistribution(CoordinatesDistribution(second).logits())
    mixed = CoordinatesDistribution(first).guided(dense, 2.0)
    torch.testing.assert_close(mixed.logits(), guided.logits(), rtol=0, atol=1e-10)


def test_refuses_other_codebooks() -> None:
    spec = TokenSpec(scales=(1,), codebook_sizes=(4096,), code_dim=12, latent_size=1)
    with pytest.raises(ValueError, match=r"coordinates head.*196560.*24.*4096.*12"):
        CoordinatesHead(CoordinatesHeadConfig(), WIDTH, spec)

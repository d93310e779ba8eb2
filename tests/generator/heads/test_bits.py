import pytest
import torch

from lambda24.generator.heads import (
    BitsDistribution,
    BitsHead,
    BitsHeadConfig,
    CategoricalDistribution,
)
from lambda24.tokenizer.tokens import TokenSpec

WIDTH = 16


def spec(*codebook_sizes: int) -> TokenSpec:
    return TokenSpec(scales=(1,), codebook_sizes=codebook_sizes, code_dim=8, latent_size=1)


def trained_head(*codebook_sizes: int) -> BitsHead:
    torch.manual_seed(0)
    head = BitsHead(BitsHeadConfig(), WIDTH, spec(*codebook_sizes))
    torch.nn.init.normal_(head.linear.weight, std=0.5)
    return head.double()


@pytest.mark.parametrize("sizes", [(256,), (16, 4)])
def test_loss_is_that_of_the_dense_distribution(sizes: tuple[int, ...]) -> None:
    head = trained_head(*sizes)
    hidden = torch.randn(5, 3, WIDTH, dtype=torch.float64)
    tokens = torch.stack([torch.randint(size, (5, 3)) for size in sizes], dim=-1)
    loss = head.loss(hidden, tokens)
    logits = head.logits(hidden)
    logits = logits.unsqueeze(-2) if len(sizes) == 1 else logits
    nll = -logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1).sum(-1)
    torch.testing.assert_close(loss.nll, nll, rtol=0, atol=1e-11)
    torch.testing.assert_close(loss.log_z, logits.logsumexp(-1).sum(-1), rtol=0, atol=1e-11)


def test_draws_follow_the_probabilities() -> None:
    bit_logits = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64).expand(20_000, 3)
    distribution = BitsDistribution(bit_logits, (2, 1))
    assert distribution.num_uniforms == 3
    generator = torch.Generator().manual_seed(1)
    draws = distribution.sample(torch.rand(20_000, 3, generator=generator))
    assert draws.shape == (20_000, 2)
    for group in range(2):
        expected = distribution.logits()[0, group].softmax(-1)
        share = torch.bincount(draws[:, group], minlength=4) / 20_000
        torch.testing.assert_close(share.double(), expected, rtol=0, atol=0.015)


def test_guidance_and_temperature_are_closed() -> None:
    first, second = (BitsDistribution(torch.randn(4, 6), (6,)) for _ in range(2))
    guided = first.guided(second, 3.0)
    assert isinstance(guided, BitsDistribution)
    torch.testing.assert_close(guided.logits(), 3 * first.logits() - 2 * second.logits())
    torch.testing.assert_close(guided.tempered(0.5).logits(), 2 * guided.logits())
    dense = first.guided(CategoricalDistribution(second.logits()), 3.0)
    torch.testing.assert_close(dense.logits(), guided.logits())


def test_wide_codebooks_are_drawn_without_logits() -> None:
    distribution = BitsDistribution(torch.full((2, 32), 50.0), (32,))
    assert distribution.sample(torch.rand(2, 32)).tolist() == [[2**32 - 1]] * 2
    with pytest.raises(ValueError, match=r"20 bits.*32"):
        distribution.logits()


@pytest.mark.parametrize("sizes", [(196_560,), (16, 1), (16, 9)])
def test_refuses_codebooks_that_are_not_powers_of_two(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"powers of two.*{sizes[-1]}"):
        BitsHead(BitsHeadConfig(), WIDTH, spec(*sizes))

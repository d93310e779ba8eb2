from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.lattices.softmax.log_z import log_normalizer
from lambda24.tokenizer.lattices.softmax.sums import log_partition

Gather = Callable[[Tensor], Tensor]


@pytest.mark.parametrize("spread", [0.3, 3.0, 40.0])
def test_value_and_gradient_equal_the_sum_over_all_codes(
    spread: float, all_code_scores: Gather, marginals_of: Gather
) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = spread * torch.randn(5, 24, 9, dtype=torch.float64, generator=generator)
    scores.requires_grad_()
    log_z = log_normalizer(scores)
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * log_z).sum(), scores)
    expected = all_code_scores(scores.detach())
    torch.testing.assert_close(log_z, expected.logsumexp(1), rtol=1e-12, atol=1e-10)
    marginals = marginals_of(expected.softmax(1)) * weights[:, None, None]
    torch.testing.assert_close(gradient, marginals, rtol=0, atol=1e-10)


def test_uniform_scores_count_the_codes() -> None:
    log_z, marginals = log_partition(torch.zeros(1, 24, 9, dtype=torch.float64), chunk_size=1)
    assert log_z.exp().item() == pytest.approx(leech.NUM_CODES, rel=1e-13)
    counts = torch.zeros(9, dtype=torch.float64)
    values, occurrences = leech.codebook(torch.int64)[:, 0].unique(return_counts=True)
    counts[values + 4] = occurrences.double() / leech.NUM_CODES
    torch.testing.assert_close(marginals[0], counts.expand(24, 9), rtol=1e-12, atol=0)


@pytest.mark.parametrize("pattern", ["signs", "gaussian", "impossible"])
def test_float32_is_finite_and_right_where_products_underflow(
    pattern: str, all_code_scores: Gather, marginals_of: Gather
) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(6, 24, 9, generator=generator)
    if pattern == "impossible":  # the best value of each coordinate is +-4: no code is near
        scores = scores - 80
        scores[..., 0], scores[..., 8] = 80.0, 80.0
    else:
        scores = 80 * (scores.sign() if pattern == "signs" else scores)
    scores.requires_grad_()
    log_z = log_normalizer(scores)
    (gradient,) = torch.autograd.grad(log_z.sum(), scores)
    expected = all_code_scores(scores.detach().double())
    torch.testing.assert_close(log_z.double(), expected.logsumexp(1), rtol=1e-6, atol=1e-4)
    marginals = marginals_of(expected.softmax(1))
    torch.testing.assert_close(gradient.double(), marginals, rtol=0, atol=1e-5)


def test_rows_of_every_range_in_one_float32_batch(
    all_code_scores: Gather, marginals_of: Gather
) -> None:
    spread = torch.tensor([0.1, 60.0, 2.0, 6.0, 300.0])
    scores = torch.randn(5, 24, 9, generator=torch.Generator().manual_seed(4))
    scores = (scores * spread[:, None, None]).requires_grad_()
    log_z = log_normalizer(scores)
    (gradient,) = torch.autograd.grad(log_z.sum(), scores)
    assert torch.equal(log_z.detach(), log_normalizer(scores.detach()))
    expected = all_code_scores(scores.detach().double())
    torch.testing.assert_close(log_z.double(), expected.logsumexp(1), rtol=1e-6, atol=1e-5)
    marginals = marginals_of(expected.softmax(1))
    torch.testing.assert_close(gradient.double(), marginals, rtol=0, atol=1e-5)


def test_underflow_is_reported_not_rounded_to_a_number() -> None:
    scores = torch.full((2, 24, 9), -80.0)
    scores[1] = 0
    scores[0, :, 8] = 80
    log_z, _ = log_partition(scores, chunk_size=2)
    assert log_z.isnan().tolist() == [True, False]


def test_a_token_does_not_depend_on_chunks_or_neighbours() -> None:
    scores = torch.randn(11, 24, 9, generator=torch.Generator().manual_seed(2))
    whole = log_partition(scores, chunk_size=11)
    for row in range(11):
        single = log_partition(scores[row : row + 1], chunk_size=1)
        torch.testing.assert_close(single[0][0], whole[0][row], rtol=1e-6, atol=0)
        torch.testing.assert_close(single[1][0], whole[1][row], rtol=1e-5, atol=1e-7)


def test_marginals_of_every_coordinate_sum_to_one() -> None:
    scores = 3 * torch.randn(20, 24, 9, generator=torch.Generator().manual_seed(3))
    _, marginals = log_partition(scores, chunk_size=8)
    torch.testing.assert_close(marginals.sum(2), torch.ones(20, 24), rtol=0, atol=3e-6)


def test_works_in_inference_mode() -> None:
    scores = torch.full((1, 24, 9), -80.0)
    scores[..., 8] = 80  # no sums of products are safe
    with torch.inference_mode():
        inside = log_normalizer(scores)
    torch.testing.assert_close(inside, log_normalizer(scores))

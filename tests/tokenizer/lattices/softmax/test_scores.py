from collections.abc import Callable

import torch
from torch import Tensor

from lambda24.tokenizer.lattices.softmax.log_z import log_normalizer
from lambda24.tokenizer.lattices.softmax.scores import code_scores

Gather = Callable[[Tensor], Tensor]


def test_all_codes_in_canonical_order(all_code_scores: Gather) -> None:
    scores = torch.randn(6, 24, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = code_scores(scores)
    torch.testing.assert_close(logits, all_code_scores(scores), rtol=0, atol=1e-12)
    torch.testing.assert_close(logits.logsumexp(1), log_normalizer(scores), rtol=0, atol=1e-10)


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    scores = torch.randn(6, 24, 9, generator=torch.Generator().manual_seed(1))
    assert torch.equal(code_scores(scores)[4:5], code_scores(scores[4:5]))


def test_gradient_is_that_of_the_sum(all_code_scores: Gather) -> None:
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(1, 24, 9, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.randn(1, 196_560, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad((weights * code_scores(scores)).sum(), scores)
    (expected,) = torch.autograd.grad((weights * all_code_scores(scores)).sum(), scores)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9)

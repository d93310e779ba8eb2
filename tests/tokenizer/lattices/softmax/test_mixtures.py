from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lambda24.tokenizer.lattices.softmax.mixtures import ROWS, mixture_code_scores

Gather = Callable[[Tensor], Tensor]


def joint_scores(all_code_scores: Gather, scores: Tensor, mixture: Tensor) -> Tensor:
    """The sum over components, code by code."""
    joint = all_code_scores(scores.flatten(0, 1)).unflatten(0, mixture.shape)
    return (joint + mixture[..., None]).logsumexp(1)


@pytest.mark.parametrize("num_mixtures", [1, 3])
def test_all_codes_in_canonical_order(all_code_scores: Gather, num_mixtures: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(ROWS + 1, num_mixtures, 24, 9, dtype=torch.float64, generator=generator)
    mixture = torch.randn(ROWS + 1, num_mixtures, dtype=torch.float64, generator=generator)
    logits = mixture_code_scores(scores, mixture)
    expected = joint_scores(all_code_scores, scores, mixture)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


def test_far_scores_keep_their_tails_in_float32(all_code_scores: Gather) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = 20 * torch.randn(2, 3, 24, 9, generator=generator)
    mixture = 20 * torch.randn(2, 3, generator=generator)
    expected = joint_scores(all_code_scores, scores.double(), mixture.double())
    assert expected.amax() - expected.amin() > 400  # far more than exp can hold in float32
    torch.testing.assert_close(
        mixture_code_scores(scores, mixture).double(), expected, rtol=0, atol=1e-3
    )


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(ROWS + 3, 4, 24, 9, generator=generator)
    mixture = torch.randn(ROWS + 3, 4, generator=generator)
    whole = mixture_code_scores(scores, mixture)
    for place in (0, ROWS - 1, ROWS + 1):
        alone = mixture_code_scores(scores[place : place + 1], mixture[place : place + 1])
        assert torch.equal(alone[0], whole[place])


def test_gradient_is_that_of_the_sum(all_code_scores: Gather) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(1, 2, 24, 9, dtype=torch.float64, generator=generator, requires_grad=True)
    mixture = torch.randn(1, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.randn(1, 196_560, dtype=torch.float64, generator=generator)
    found = torch.autograd.grad(
        (weights * mixture_code_scores(scores, mixture)).sum(), (scores, mixture)
    )
    expected = torch.autograd.grad(
        (weights * joint_scores(all_code_scores, scores, mixture)).sum(), (scores, mixture)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)

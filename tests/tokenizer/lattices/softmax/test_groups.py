from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.lattices.softmax.groups import NUM_UNIFORMS, CodeGroups, draw_codes

Gather = Callable[[Tensor], Tensor]


def random_scores(rows: int, spread: float, seed: int) -> Tensor:
    return spread * torch.randn(rows, 24, 9, generator=torch.Generator().manual_seed(seed))


def uniforms(rows: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, NUM_UNIFORMS, generator=torch.Generator().manual_seed(seed))


def chi_square_p_value(counts: Tensor, probabilities: Tensor) -> float:
    """Cells expected fewer than 10 times are put together."""
    expected = counts.sum() * probabilities
    rare = expected < 10
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    kept = expected > 0
    result = stats.chisquare(counts[kept].numpy(), expected[kept].numpy())
    return float(result.pvalue)


@pytest.mark.parametrize(("spread", "num_draws"), [(0.4, 20_000), (1.5, 5_000)])
def test_draws_follow_the_exact_distribution(
    spread: float, num_draws: int, all_code_scores: Gather
) -> None:
    scores = random_scores(1, spread, seed=3)
    scores[..., 0] += 2.2  # as much mass on the 1,104 codes of type 4 as on the other types
    scores[..., 8] += 2.2
    probabilities = all_code_scores(scores.double()).softmax(1)[0]
    draws = draw_codes(scores.expand(num_draws, -1, -1), uniforms(num_draws))
    counts = torch.bincount(draws, minlength=leech.NUM_CODES).double()
    starts = (0, 384, 11_136, 97_152, 195_456)
    family = torch.bucketize(torch.arange(leech.NUM_CODES), torch.tensor(starts), right=True) - 1
    # Digits of the canonical index, largest blocks to smallest: shapes, labels, signs, places.
    for name, cell in {
        "family": family,
        "block": torch.arange(leech.NUM_CODES) // 512,
        "low digits": torch.arange(leech.NUM_CODES) % 64 + 64 * family,
        "middle digits": torch.arange(leech.NUM_CODES) // 64 % 64 + 64 * family,
        "codes": torch.arange(leech.NUM_CODES),
    }.items():
        size = int(cell.max()) + 1
        observed = torch.zeros(size, dtype=torch.float64).index_add_(0, cell, counts)
        expected = torch.zeros(size, dtype=torch.float64).index_add_(0, cell, probabilities)
        assert chi_square_p_value(observed, expected) > 1e-4, name
    if spread < 1:
        assert (torch.bincount(family[draws], minlength=5) > 10).all()


def test_draws_are_a_function_of_the_uniforms_and_of_nothing_else() -> None:
    scores, numbers = random_scores(300, 2.0, seed=4), uniforms(300)
    draws = draw_codes(scores, numbers)
    assert torch.equal(draws, draw_codes(scores, numbers))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    assert torch.equal(draws[order], draw_codes(scores[order], numbers[order]))
    assert torch.equal(draws[7:8], draw_codes(scores[7:8], numbers[7:8]))
    assert not torch.equal(draws, draw_codes(scores, uniforms(300, seed=1)))


@pytest.mark.parametrize("value", [0.0, 1 - 2**-24, 1 - 2**-53])
def test_extreme_uniforms_give_possible_codes(value: float) -> None:
    numbers = torch.full((50, NUM_UNIFORMS), value, dtype=torch.float64)
    for spread in (0.0, 1.0, 80.0):
        draws = draw_codes(random_scores(50, spread, seed=6), numbers)
        assert draws.min() >= 0
        assert draws.max() < leech.NUM_CODES


def test_a_point_mass_is_drawn() -> None:
    starts = torch.tensor([0, 383, 384, 11_135, 11_136, 97_151, 97_152, 195_455, 195_456, 196_559])
    spread = torch.randint(leech.NUM_CODES, (200,), generator=torch.Generator().manual_seed(7))
    codes = torch.cat([starts, spread])
    cells = leech.codebook(torch.int64)[codes] + 4
    scores = torch.full((len(codes), 24, 9), -80.0).scatter_(2, cells[..., None], 80.0)
    assert torch.equal(draw_codes(scores, uniforms(len(codes))), codes)


def test_log_normaliser_in_logs(all_code_scores: Gather) -> None:
    scores = random_scores(3, 2.0, seed=8).double()
    expected = all_code_scores(scores).logsumexp(1)
    torch.testing.assert_close(CodeGroups.of(scores).log_z(), expected, rtol=0, atol=1e-10)

"""Filters on dense logits: edge cases, ties, batches."""

import pytest
import torch

from lambda24.common.draws import inverse_cdf
from lambda24.sampling.logits import (
    PROBES,
    Candidates,
    best_candidates,
    min_p,
    top_k,
    top_p,
)

ROW = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()


def kept(logits: torch.Tensor) -> list[int]:
    return (logits > -torch.inf).nonzero().flatten().tolist()


def test_top_k_keeps_the_best_untouched():
    assert kept(top_k(ROW, 1)) == [1]
    assert kept(top_k(ROW, 2)) == [1, 3]
    assert torch.equal(top_k(ROW, 2)[[1, 3]], ROW[[1, 3]])
    assert torch.equal(top_k(ROW, 4), ROW)


def test_top_k_keeps_ties_at_the_cut():
    assert kept(top_k(torch.tensor([1.0, 2.0, 1.0, 0.0]), 2)) == [0, 1, 2]


@pytest.mark.parametrize("k", [0, -1, 5])
def test_top_k_out_of_range(k: int):
    with pytest.raises(ValueError, match=rf"\[1, 4\].*got {k}"):
        top_k(ROW, k)


def test_top_p_keeps_the_fewest_that_reach_p():
    assert kept(top_p(ROW, 1e-6)) == [1]  # the best always stays
    assert kept(top_p(ROW, 0.39)) == [1]
    assert kept(top_p(ROW, 0.41)) == [1, 3]
    assert kept(top_p(ROW, 0.71)) == [1, 2, 3]
    assert kept(top_p(ROW, 0.95)) == [0, 1, 2, 3]
    assert torch.equal(top_p(ROW, 1.0), ROW)


def test_top_p_keeps_ties_at_the_cut():
    assert kept(top_p(torch.zeros(4), 0.2)) == [0, 1, 2, 3]


@pytest.mark.parametrize("p", [0.0, -0.1, 1.01])
def test_top_p_out_of_range(p: float):
    with pytest.raises(ValueError, match=rf"\(0, 1\], got {p}"):
        top_p(ROW, p)


def test_top_p_after_top_k_renormalises():
    # Among {1, 3} the shares are .571 and .429: p = .5 keeps one, p = .6 both.
    assert kept(top_p(top_k(ROW, 2), 0.5)) == [1]
    assert kept(top_p(top_k(ROW, 2), 0.6)) == [1, 3]


def test_min_p_is_relative_to_the_best():
    assert kept(min_p(ROW, 0.0)) == [0, 1, 2, 3]
    assert kept(min_p(ROW, 0.3)) == [1, 2, 3]
    assert kept(min_p(ROW, 0.6)) == [1, 3]
    assert kept(min_p(torch.zeros(3), 1.0)) == [0, 1, 2]  # ties with the best
    assert torch.equal(min_p(ROW, 0.6)[[1, 3]], ROW[[1, 3]])
    assert kept(min_p(ROW + 5, 0.6)) == [1, 3]  # logits need no normaliser


@pytest.mark.parametrize("p", [-0.1, 1.01, float("nan")])
def test_min_p_out_of_range(p: float):
    with pytest.raises(ValueError, match=rf"\[0, 1\], got {p}"):
        min_p(ROW, p)


def test_rows_are_independent():
    logits = torch.randn(5, 3, 50) * 3
    logits[0, 0, 10:] = -torch.inf
    for function, value in ((top_k, 7), (top_p, 0.8), (min_p, 0.2)):
        together = function(logits, value)
        for i in range(5):
            for j in range(3):
                assert torch.equal(together[i, j], function(logits[i, j], value))


def test_draws_follow_the_filtered_distribution():
    uniforms = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    draws = inverse_cdf(top_k(ROW, 2).expand(10_000, 4), uniforms)
    shares = torch.bincount(draws, minlength=4) / 10_000
    assert torch.allclose(shares, torch.tensor([0.0, 4 / 7, 0.0, 3 / 7]), atol=1e-3)


@pytest.mark.parametrize("num_codes", [60, 5 * PROBES])
@pytest.mark.parametrize("kind", ["gaussian", "ties", "few", "rising"])
def test_candidates_are_what_top_k_leaves(num_codes: int, kind: str):
    """Rows of every kind: for those whose sample misleads, too."""
    logits = torch.randn(4, num_codes) * 2
    if kind == "ties":
        logits = logits.round()
    elif kind == "few":  # almost all that matters hides where no probe looks
        logits[:] = -5.0
        logits[:, 7:19] = torch.arange(12.0)
    elif kind == "rising":
        logits = torch.arange(4.0 * num_codes).view(4, -1)
    logits[0, 20:] = -torch.inf
    uniforms = torch.rand(4, dtype=torch.float64)
    for k in (1, 10, num_codes // 3, num_codes - 1, num_codes):
        candidates = best_candidates(logits, k)
        dense = top_k(logits, k)
        spread = torch.full_like(dense, -torch.inf)
        if candidates.codes is None:
            spread = candidates.logits
        else:
            spread.scatter_reduce_(-1, candidates.codes, candidates.logits, "amax")
        assert torch.equal(spread, dense)
        for p in (0.3, 0.95, 1.0):
            kept = Candidates(top_p(candidates.logits, p), candidates.codes)
            assert torch.equal(kept.draw(uniforms), inverse_cdf(top_p(dense, p), uniforms))


def test_candidates_of_several_codebooks():
    logits = torch.randn(3, 2, 50)
    uniforms = torch.rand(3, 2, dtype=torch.float64)
    drawn = best_candidates(logits, 7).draw(uniforms)
    assert torch.equal(drawn, inverse_cdf(top_k(logits, 7), uniforms))


@pytest.mark.parametrize("k", [0, 5])
def test_candidates_out_of_range(k: int):
    with pytest.raises(ValueError, match=rf"\[1, 4\].*got {k}"):
        best_candidates(ROW, k)


def test_top_p_stops_where_the_share_is_reached_exactly() -> None:
    """The best code alone holds half: the fewest that reach 0.5 are one."""
    logits = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    assert logits.softmax(-1).tolist() == [[0.5, 0.25, 0.25]]
    assert top_p(logits, 0.5).isfinite().tolist() == [[True, False, False]]
    assert top_p(logits, 0.51).isfinite().tolist() == [[True, True, True]]  # and its tie

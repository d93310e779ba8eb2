import pytest
import torch

from lambda24.common.draws import BLOCK, LONG, MAX_CUMULATIVE_ELEMENTS, inverse_cdf
from lambda24.generator.heads import CategoricalDistribution
from lambda24.generator.heads.base import head_linear, head_outputs


def test_inverse_cdf_is_exact_on_a_grid_of_uniforms() -> None:
    probabilities = torch.tensor([0.25, 0.0, 0.5, 0.125, 0.125], dtype=torch.float64)
    uniforms = (torch.arange(1024, dtype=torch.float64) + 0.5) / 1024
    draws = inverse_cdf(probabilities.log().expand(1024, 5), uniforms)
    assert torch.bincount(draws, minlength=5).tolist() == [256, 0, 512, 128, 128]
    assert (draws.diff() >= 0).all()


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24, 1 - 2**-53])
@pytest.mark.parametrize(("num_codes", "first", "last"), [(101, 20, 79), (LONG + 7, 700, 4_099)])
def test_forbidden_codes_are_never_drawn(
    num_codes: int, first: int, last: int, uniform: float
) -> None:
    logits = torch.randn(40, num_codes, generator=torch.Generator().manual_seed(0))
    logits[:, :first] = -torch.inf
    logits[:, last + 1 :] = -torch.inf
    draws = inverse_cdf(logits, torch.full((40,), uniform, dtype=torch.float64))
    assert draws.min() >= first
    assert draws.max() <= last
    if uniform in (0.0, 1 - 2**-53):
        assert (draws == (last if uniform else first)).all()


@pytest.mark.parametrize("num_codes", [LONG - 1, LONG, LONG + 1, 9 * BLOCK, 9 * BLOCK + 1])
def test_long_rows_are_drawn_as_by_one_cumulative_sum(num_codes: int) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(2_000, num_codes, dtype=torch.float64, generator=generator)
    uniforms = torch.rand(2_000, dtype=torch.float64, generator=generator)
    cumulative = logits.softmax(-1).cumsum(-1)
    expected = torch.searchsorted(cumulative, uniforms[:, None], right=True)[:, 0]
    assert torch.equal(inverse_cdf(logits, uniforms), expected)


def test_chunks_do_not_change_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, uniforms = torch.randn(3, 4, 50, generator=generator), torch.rand(3, 4)
    whole = inverse_cdf(logits, uniforms)
    monkeypatch.setitem(MAX_CUMULATIVE_ELEMENTS, "cpu", 100)
    assert whole.shape == (3, 4)
    assert torch.equal(inverse_cdf(logits, uniforms), whole)


def test_guidance_and_temperature() -> None:
    generator = torch.Generator().manual_seed(2)
    conditional, unconditional = torch.randn(2, 6, 10, generator=generator)
    conditional[:, 3] = -torch.inf
    mixed = CategoricalDistribution(conditional).guided(CategoricalDistribution(unconditional), 2.5)
    expected = 2.5 * conditional - 1.5 * unconditional
    torch.testing.assert_close(mixed.logits(), expected)
    torch.testing.assert_close(mixed.tempered(0.5).logits(), expected / 0.5)


def test_guidance_keeps_codes_out_that_either_side_forbids() -> None:
    free, masked = torch.zeros(1, 3), torch.tensor([[0.0, -torch.inf, 0.0]])
    for scale in (0.0, 1.0, 3.0):
        pairs = ((free, masked), (masked, free), (masked, masked))
        for conditional, unconditional in pairs:
            mixed = CategoricalDistribution(conditional).guided(
                CategoricalDistribution(unconditional), scale
            )
            assert mixed.logits()[0, 1] == -torch.inf
            assert mixed.logits()[0, [0, 2]].isfinite().all()


def test_codebooks_are_drawn_independently() -> None:
    logits = torch.full((7, 2, 5), -torch.inf)
    logits[:, 0, 3] = 0
    logits[:, 1, 1] = 0
    distribution = CategoricalDistribution(logits, num_codebooks=2)
    assert distribution.num_uniforms == 2
    assert distribution.sample(torch.rand(7, 2)).tolist() == [[3, 1]] * 7
    with pytest.raises(ValueError, match=r"num_uniforms 2.*\(7, 3\)"):
        distribution.sample(torch.rand(7, 3))
    with pytest.raises(ValueError, match=r"2 codebooks.*\(7, 5\)"):
        CategoricalDistribution(logits[:, 0], num_codebooks=2)


def test_outputs_are_float32_under_autocast_and_for_bfloat16_weights() -> None:
    linear = head_linear(16, 8)
    hidden = torch.randn(4, 16, generator=torch.Generator().manual_seed(3))
    expected = hidden @ linear.weight.T + linear.bias
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head_outputs(hidden, linear.weight, linear.bias)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, expected, rtol=0, atol=1e-7)
    rounded = head_outputs(hidden, linear.weight.bfloat16(), linear.bias.bfloat16())
    assert rounded.dtype == torch.float32

"""VAR's guidance convention, and which scales need the unconditional pass."""

import pytest
import torch

from sampling.guidance import num_paired_scales, var_guidance


def test_var_cfg_of_one_and_a_half_ramps_from_one_to_two_and_a_half():
    scales = var_guidance(1.5, 10)
    published = (1.00, 1.17, 1.33, 1.50, 1.67, 1.83, 2.00, 2.17, 2.33, 2.50)
    assert scales == pytest.approx(published, abs=0.005)


def test_var_formula_equals_the_standard_one():
    conditional, unconditional = torch.randn(2, 9)
    for k, scale in enumerate(var_guidance(4.0, 5)):
        t = 4.0 * k / 4
        ours = scale * conditional + (1 - scale) * unconditional
        assert torch.allclose(ours, (1 + t) * conditional - t * unconditional, atol=1e-6)


def test_one_scale_is_not_guided():
    assert var_guidance(4.0, 1) == (1.0,)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [((1, 1, 1), 0), ((1, 2, 3), 3), ((2, 1, 1), 1), ((1, 2, 1), 2), ((1, 0, 1), 2)],
)
def test_pass_is_needed_up_to_the_last_guided_scale(scales: tuple[float, ...], expected: int):
    assert num_paired_scales(scales) == expected

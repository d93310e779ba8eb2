"""Schedules resolve to one value per scale."""

import pytest
import torch

from lambda24.common.config import from_dict
from lambda24.sampling.ramps import (
    CosineRamp,
    LinearRamp,
    PowerRamp,
    VarRamp,
    resolve_schedule,
)
from lambda24.sampling.settings import SamplingConfig


def test_numbers_and_lists():
    assert resolve_schedule(2, 3, "x") == (2.0, 2.0, 2.0)
    assert resolve_schedule((1.0, 2.0, 4.0), 3, "x") == (1.0, 2.0, 4.0)
    with pytest.raises(ValueError, match="temperature lists 2 values, but there are 3 scales"):
        resolve_schedule((1.0, 2.0), 3, "temperature")


def test_ramps():
    assert resolve_schedule(LinearRamp(start=1.0, end=3.0), 5, "x") == (1, 1.5, 2, 2.5, 3)
    cosine = resolve_schedule(CosineRamp(start=0.0, end=1.0), 5, "x")
    assert cosine == pytest.approx((0, 0.1464466, 0.5, 0.8535534, 1))
    power = resolve_schedule(PowerRamp(start=1.0, end=3.0, power=2.0), 3, "x")
    assert power == pytest.approx((1, 1.5, 3))


def test_one_scale_takes_the_start():
    assert resolve_schedule(LinearRamp(start=1.0, end=3.0), 1, "x") == (1.0,)
    assert resolve_schedule(VarRamp(cfg=4.0), 1, "x") == (1.0,)


def test_var_cfg_of_one_and_a_half_ramps_from_one_to_two_and_a_half():
    scales = resolve_schedule(VarRamp(cfg=1.5), 10, "x")
    published = (1.00, 1.17, 1.33, 1.50, 1.67, 1.83, 2.00, 2.17, 2.33, 2.50)
    assert scales == pytest.approx(published, abs=0.005)


def test_var_formula_equals_the_standard_one():
    conditional, unconditional = torch.randn(2, 9)
    for k, scale in enumerate(resolve_schedule(VarRamp(cfg=4.0), 5, "x")):
        t = 4.0 * k / 4
        ours = scale * conditional + (1 - scale) * unconditional
        assert torch.allclose(ours, (1 + t) * conditional - t * unconditional, atol=1e-6)


def test_vars_ramp_is_for_guidance():
    config = from_dict(SamplingConfig, {"guidance_scale": {"kind": "var", "cfg": 4}})
    assert config.guidance_scale == VarRamp(cfg=4.0)
    with pytest.raises(ValueError, match="temperature"):
        from_dict(SamplingConfig, {"temperature": {"kind": "var", "cfg": 4}})


def test_plain_data_becomes_ramps():
    config = from_dict(
        SamplingConfig,
        {
            "guidance_scale": {"kind": "linear", "start": 1, "end": 3},
            "temperature": 0.9,
            "top_k": [5, 4, 3],
            "top_p": {"kind": "cosine", "start": 1, "end": 0.9},
        },
    )
    assert config.guidance_scale == LinearRamp(start=1.0, end=3.0)
    assert config.top_k == (5.0, 4.0, 3.0)
    assert config.top_p == CosineRamp(start=1.0, end=0.9)


@pytest.mark.parametrize(
    "value", ["much", {"kind": "quadratic", "start": 1, "end": 2}, {"kind": "linear", "start": 1}]
)
def test_bad_plain_data_names_the_field(value: object):
    with pytest.raises(ValueError, match="guidance_scale"):
        from_dict(SamplingConfig, {"guidance_scale": value})

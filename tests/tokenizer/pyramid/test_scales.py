"""Scale schedules by name and as lists, and what is refused."""

import pytest

from lambda24.common.config import from_dict, to_dict
from lambda24.tokenizer.pyramid.multiscale import PyramidConfig
from lambda24.tokenizer.pyramid.scales import SCHEDULES
from lambda24.tokenizer.tokens import TokenSpec


@pytest.mark.parametrize(
    ("name", "scales", "tokens"),
    [
        ("infinity_16", (1, 2, 4, 6, 8, 12, 16), 521),
        ("var_16", (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 680),
        ("infinity_32", (1, 2, 4, 6, 8, 12, 16, 20, 24, 32), 2521),
        ("var_32", (1, 2, 3, 4, 6, 9, 13, 18, 24, 32), 2240),
        ("small_8", (1, 2, 3, 5, 8), 103),
        ("small_4", (1, 2, 3, 4), 30),
    ],
)
def test_a_name_stands_for_its_list(name, scales, tokens):
    config = from_dict(PyramidConfig, {"scales": name})
    assert config.scales == scales
    assert config == from_dict(PyramidConfig, {"scales": list(scales)})
    spec = TokenSpec(
        scales=config.scales, codebook_sizes=(2,), code_dim=1, latent_size=config.scales[-1]
    )
    assert spec.length == tokens
    assert str(spec.latent_size) == name.rpartition("_")[2]


def test_every_schedule_was_named_above():
    assert len(SCHEDULES) == 6


def test_a_saved_config_holds_the_numbers():
    config = from_dict(PyramidConfig, {"scales": "small_4"})
    assert to_dict(config)["scales"] == [1, 2, 3, 4]
    assert from_dict(PyramidConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ("var_64", r"scales: got 'var_64': no such schedule .*var_16"),
        ([1, 3, 3], r"strictly increasing, got \(1, 3, 3\)"),
        ([0, 2], "positive"),
        ([], "positive"),
        ([1, 2.5], r"scales\.1: got 2.5"),
        (4, r"scales: got 4 \(allowed: .*\)"),
    ],
)
def test_other_scales_are_refused(scales, message):
    with pytest.raises(ValueError, match=message):
        from_dict(PyramidConfig, {"scales": scales})

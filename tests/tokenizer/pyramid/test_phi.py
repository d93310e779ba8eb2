"""Phi convolutions: which scale takes which, and what one computes."""

import pytest
import torch
import torch.nn.functional as F

from lambda24.tokenizer.pyramid.phi import Phi, phi_index


def phi_map(num_scales, num_phis):
    return [phi_index(scale, num_scales, num_phis) for scale in range(num_scales)]


def test_the_map_of_the_released_tokenizers():
    assert phi_map(10, 4) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("num_scales", "num_phis", "expected"),
    [
        (7, 4, [0, 0, 1, 2, 2, 3, 3]),
        (5, 4, [0, 1, 2, 2, 3]),
        (5, 1, [0] * 5),
        (1, 1, [0]),
        (10, 2, [0] * 5 + [1] * 5),
        (10, 5, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
    ],
)
def test_other_numbers_of_scales(num_scales, num_phis, expected):
    assert phi_map(num_scales, num_phis) == expected


def test_neighbours_share_and_none_is_left_out():
    for num_scales in range(1, 15):
        for num_phis in range(1, num_scales + 1):
            found = phi_map(num_scales, num_phis)
            assert found == sorted(found)
            assert sorted(set(found)) == list(range(num_phis))
        assert found == list(range(num_scales))  # as many as scales: one each


def test_half_of_the_convolution_and_half_of_the_identity():
    maps = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    phi = Phi(3)
    assert torch.equal(phi(maps), maps)
    with torch.no_grad():
        for parameter in phi.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    convolved = F.conv2d(maps, phi.weight, phi.bias, padding=1)
    assert torch.allclose(phi(maps), 0.5 * maps + 0.5 * convolved, atol=1e-6)

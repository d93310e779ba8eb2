"""Resampling modes against averages and interpolation written out."""

import pytest
import torch

from lambda24.tokenizer.pyramid.resampling import resample

MODES = ["area", "bilinear", "bicubic"]


@pytest.mark.parametrize("mode", MODES)
def test_the_same_side_is_the_identity(mode):
    maps = torch.randn(1, 2, 4, 4)
    assert resample(maps, 4, mode) is maps


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", [1, 2, 3, 5, 7, 16])
def test_constants_stay(mode, side):
    maps = torch.full((1, 2, 5, 5), 0.75)
    assert torch.allclose(resample(maps, side, mode), torch.full((1, 2, side, side), 0.75))


def test_area_averages_cells():
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert resample(maps, 2, "area").flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert resample(maps, 1, "area").item() == 7.5


def test_bilinear_up_has_aligned_centres():
    line = torch.tensor([0.0, 1.0]).expand(1, 1, 2, 2)
    assert resample(line, 4, "bilinear")[0, 0, 0].tolist() == [0, 0.25, 0.75, 1]


def test_only_antialiased_shrinking_sees_the_whole_map():
    corner = torch.zeros(1, 1, 8, 8)
    corner[0, 0, 0, 0] = 1
    assert resample(corner, 1, "bilinear").item() > 0
    assert resample(corner, 1, "bilinear", antialias=False).item() == 0


def test_bicubic_overshoots_and_bilinear_does_not():
    step = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 4, 4)
    assert resample(step, 16, "bicubic").max() > 1.01
    assert resample(step, 16, "bilinear").max() == 1

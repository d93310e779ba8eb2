"""Which scales need the unconditional pass."""

import pytest

from lambda24.sampling.guidance import num_paired_scales


@pytest.mark.parametrize(
    ("scales", "expected"),
    [((1, 1, 1), 0), ((1, 2, 3), 3), ((2, 1, 1), 1), ((1, 2, 1), 2), ((1, 0, 1), 2)],
)
def test_pass_is_needed_up_to_the_last_guided_scale(scales: tuple[float, ...], expected: int):
    assert num_paired_scales(scales) == expected

"""The numbers that describe a pyramid, and what a batch of tokens refuses."""

import math

import pytest
import torch

from lambda24.tokenizer.tokens import TokenPyramid, TokenSpec

SPEC = TokenSpec(scales=(1, 2, 4), codebook_sizes=(196_560,), code_dim=24, latent_size=4)


def test_numbers_of_a_spec():
    assert SPEC.scale_lengths == (1, 4, 16)
    assert SPEC.offsets == (0, 1, 5, 21)
    assert SPEC.length == 21
    assert SPEC.scale_slice(2) == slice(5, 21)
    assert SPEC.bits_per_image == pytest.approx(21 * math.log2(196_560))
    assert TokenSpec(**SPEC.to_dict()) == SPEC


def test_lists_from_json_equal_tuples():
    data = {**SPEC.to_dict(), "scales": [1, 2, 4], "codebook_sizes": [196_560]}
    assert TokenSpec(**data) == SPEC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": (1, 3, 3)}, r"increasing, got \(1, 3, 3\)"),
        ({"scales": ()}, "increasing"),
        ({"scales": (1, 2)}, "latent_size 4, got last scale 2"),
        ({"codebook_sizes": (0,)}, "positive"),
    ],
)
def test_bad_specs(change, message):
    with pytest.raises(ValueError, match=message):
        TokenSpec(**{**SPEC.to_dict(), **change})


def test_views_and_joining():
    indices = torch.arange(2 * 21).view(2, 21, 1)
    pyramid = TokenPyramid(indices, SPEC)
    scales = [pyramid.scale(k) for k in range(3)]
    assert [scale.shape[1] for scale in scales] == [1, 4, 16]
    assert torch.equal(TokenPyramid.from_scales(scales, SPEC).indices, indices)


def test_refuses_other_shapes_types_and_ranges():
    with pytest.raises(ValueError, match=r"\(B, 21, 1\), got \(2, 20, 1\)"):
        TokenPyramid(torch.zeros(2, 20, 1, dtype=torch.int64), SPEC)
    with pytest.raises(ValueError, match=r"int64, got torch\.int32"):
        TokenPyramid(torch.zeros(2, 21, 1, dtype=torch.int32), SPEC)
    TokenPyramid(torch.full((1, 21, 1), 196_559), SPEC).validate()
    with pytest.raises(ValueError, match="196560"):
        TokenPyramid(torch.full((1, 21, 1), 196_560), SPEC).validate()

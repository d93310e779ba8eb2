from __future__ import annotations

import math

import pytest
import torch

from lambda24.tokenizer.lattices import golay
from lambda24.tokenizer.lattices import order as leech_order
from lambda24.tokenizer.lattices.order import NUM_CODES, TYPE_RANGES, codebook, rank, unrank

SPECTRUM = {-32: 1, -16: 4600, -8: 47_104, 0: 93_150, 8: 47_104, 16: 4600, 32: 1}


def test_shell_has_the_kissing_number_of_distinct_vectors() -> None:
    codes = codebook()
    assert codes.shape == (NUM_CODES, 24)
    assert codes.dtype == torch.int8
    assert (codes.int().square().sum(1) == leech_order.SQUARED_NORM).all()
    # Base 9 in two 12-digit numbers: a perfect hash.
    digits = (codes.long() + 4).view(NUM_CODES, 2, 12)
    keys = (digits * 9 ** torch.arange(12)).sum(2)
    assert len(torch.unique(keys, dim=0)) == NUM_CODES


def test_shapes_come_in_type_order() -> None:
    largest = codebook().abs().amax(1)
    for shape, (start, stop) in TYPE_RANGES.items():
        assert (largest[start:stop] == shape).all()
    assert [stop - start for start, stop in TYPE_RANGES.values()] == [97_152, 98_304, 1_104]


def test_vectors_are_leech_lattice_points() -> None:
    """Conway's membership: congruent coordinates, Golay words in each bit, sum by parity."""
    codes = codebook().long()
    parity = codes[:, :1] & 1
    assert ((codes - parity) % 2 == 0).all()
    assert (codes.sum(1) % 8 == 4 * parity[:, 0]).all()
    bits = ((codes - parity) // 2 & 1) << torch.arange(24)
    words = (golay.codewords().long() << torch.arange(24)).sum(1)
    assert torch.isin(bits.sum(1), words).all()


@pytest.mark.parametrize("shape", [2, 3, 4])
def test_inner_product_spectrum(shape: int) -> None:
    codes = codebook().float()
    generator = torch.Generator().manual_seed(shape)
    start, stop = TYPE_RANGES[shape]
    for index in torch.randint(start, stop, (4,), generator=generator).tolist():
        values, counts = torch.unique(codes @ codes[index], return_counts=True)
        assert dict(zip(values.int().tolist(), counts.tolist(), strict=True)) == SPECTRUM


def test_spherical_design_moments() -> None:
    direction = torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cosines = codebook(torch.float64) @ (direction / direction.norm())
    for power in (2, 4, 10):
        odd = range(1, power, 2)
        expected = math.prod(odd) / math.prod(24 + 2 * k for k in range(power // 2))
        assert cosines.pow(power).mean().item() == pytest.approx(expected, rel=1e-10)


def test_rank_inverts_unrank_for_every_index() -> None:
    indices = torch.arange(NUM_CODES)
    assert torch.equal(rank(unrank(indices)), indices)


def test_unrank_is_the_codebook_and_keeps_shapes() -> None:
    indices = torch.tensor([[0, 384, 11_136], [97_152, 195_456, NUM_CODES - 1]])
    assert unrank(indices).shape == (2, 3, 24)
    assert torch.equal(unrank(indices), codebook()[indices])
    assert torch.equal(rank(unrank(indices)), indices)
    assert unrank(torch.tensor(7)).shape == (24,)
    assert rank(unrank(torch.tensor(7))).item() == 7
    assert unrank(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3, 24)
    assert rank(torch.zeros(0, 24, dtype=torch.int8)).shape == (0,)


def test_order_is_version_1() -> None:
    """One vector of each family, written out: changing the order makes old tokens meaningless."""
    assert leech_order.ORDER_VERSION == 1

    def row(index: int) -> list[int]:
        return unrank(torch.tensor(index)).tolist()

    empty = [0] * 8
    assert row(0) == [2] * 8 + empty + empty
    assert row(128 + 1) == [*empty, 2, 2, 2, 2, 2, 2, -2, -2, *empty]
    assert row(384 + 1) == empty + [0, 2] * 4 + [0, 2, 0, 2, 0, -2, 0, -2]
    tetrad, pair, other = [0, 2, 2, 0, 2, 0, 2, 0], [2, 2] + [0] * 6, [2, 2] + [0] * 6
    assert row(11_136) == tetrad + pair + other
    assert row(97_152 + 9) == [1, -3] + [1] * 6 + [1] * 8 + [-1] * 8
    assert row(195_456 + 1) == [4, -4] + [0] * 22


def test_codebook_dtypes() -> None:
    assert codebook(torch.int64).dtype == torch.int64
    unit = codebook(torch.float32)
    assert unit.norm(dim=1).sub(1).abs().max() < 1e-6
    assert torch.equal((unit * math.sqrt(32)).round().to(torch.int8), codebook())
    codebook().zero_()
    assert codebook().any()


def test_unrank_refuses() -> None:
    for index in (-1, NUM_CODES):
        with pytest.raises(ValueError, match=r"\[0, 196560\)"):
            unrank(torch.tensor([3, index]))
    with pytest.raises(ValueError, match="integer dtype"):
        unrank(torch.tensor([1.0]))


def test_rank_refuses_vectors_that_are_no_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = codebook()[torch.randint(0, NUM_CODES, (200,), generator=generator)].long()
    wrong = [codes * 2, torch.zeros(1, 24, dtype=torch.int64)]
    flipped = codes.clone()  # one sign changed: parity, or the Golay word, is off
    position = flipped.abs().argmax(1, keepdim=True)
    flipped.scatter_(1, position, -flipped.gather(1, position))
    wrong.append(flipped[flipped.abs().amax(1) < 4])
    wrong.append(torch.randint(-4, 5, (200, 24), generator=generator))
    wrong.append(torch.full((1, 24), torch.iinfo(torch.int64).min))
    for vectors in wrong:
        for vector in vectors:
            with pytest.raises(ValueError, match="not one of the 196560 codes"):
                rank(vector)
    with pytest.raises(ValueError, match=r"\(\.\.\., 24\)"):
        rank(torch.zeros(3, 23, dtype=torch.int64))
    with pytest.raises(ValueError, match="integer dtype"):
        rank(torch.zeros(3, 24))

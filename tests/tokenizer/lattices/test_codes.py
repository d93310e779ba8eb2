from __future__ import annotations

import copy

import pytest
import torch

from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.lattices.codes import CODE_NAMES, build_code, nearest_rows

SIZES = {"random": 700, "fibonacci": 700, "leech_subset": 700}


@pytest.mark.parametrize("name", CODE_NAMES)
def test_every_code_finds_its_largest_inner_product(name: str) -> None:
    code = build_code(name, size=SIZES.get(name))
    table = code.table()
    assert table.shape == (code.size, code.dim)
    assert code.name == name
    z = torch.randn(2, 200, code.dim, generator=torch.Generator().manual_seed(0))
    found = code.nearest(z)
    assert found.shape == (2, 200)
    score = (z * code.vectors(found)).sum(-1)
    best = torch.cat([(row @ table.T).amax(1)[None] for row in z])
    torch.testing.assert_close(score, best, rtol=1e-5, atol=1e-6)
    rows = torch.arange(0, code.size, max(1, code.size // 500))
    assert torch.equal(code.nearest(code.vectors(rows)), rows)


@pytest.mark.parametrize("shape", [2, 3, 4])
def test_leech_types_are_ranges_of_the_canonical_order(shape: int) -> None:
    code = build_code(f"leech_type{shape}")
    start, stop = leech.TYPE_RANGES[shape]
    assert torch.equal(code.table(), leech.codebook(torch.float32)[start:stop])
    z = torch.randn(300, 24, generator=torch.Generator().manual_seed(shape))
    expected = nearest_rows(z, code.table())
    assert torch.equal(code.nearest(z), expected)
    assert code.nearest(torch.zeros(24)).item() == 0


def test_subset_is_drawn_by_seed_and_symmetric_in_expectation() -> None:
    code = build_code("leech_subset", size=5000, seed=1)
    assert torch.equal(code.table(), build_code("leech_subset", size=5000, seed=1).table())
    assert not torch.equal(code.table(), build_code("leech_subset", size=5000, seed=2).table())
    assert code.table().mean(0).abs().max() < 0.02
    assert len(torch.unique(code.table(), dim=0)) == 5000


def test_nearest_rows_matches_float64_and_ignores_autocast() -> None:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(3, 100, 6, generator=generator)
    table = torch.randn(5000, 6, generator=generator)
    expected = (z.double() @ table.double().T).argmax(-1)
    assert torch.equal(nearest_rows(z, table), expected)
    assert torch.equal(nearest_rows(z, table, rows=7, codes=33), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_rows(z, table), expected)
    assert nearest_rows(z[:, :0], table).shape == (3, 0)


def test_nearest_rows_takes_the_lowest_of_equal_rows() -> None:
    table = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(50, 1)
    z = torch.tensor([[2.0, 1.0], [1.0, 2.0], [0.0, 0.0]])
    for codes in (1, 2, 3, 1000):
        assert nearest_rows(z, table, codes=codes).tolist() == [1, 0, 0]


def test_nearest_rows_refuses() -> None:
    with pytest.raises(ValueError, match=r"\(\.\.\., 2\)"):
        nearest_rows(torch.zeros(4, 3), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="finite"):
        nearest_rows(torch.tensor([[torch.nan, 0.0]]), torch.zeros(5, 2))


def test_codes_can_be_copied() -> None:
    code = build_code("e8")
    z = torch.randn(10, 8)
    assert torch.equal(copy.deepcopy(code).nearest(z), code.nearest(z))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "e9"}, "must be one of leech"),
        ({"name": "e8", "dim": 24}, "has dim 8 and size 240, got dim 24"),
        ({"name": "leech", "size": 5}, "size 196560, got dim None and size 5"),
        ({"name": "random"}, "random needs a size"),
        ({"name": "leech_subset", "size": 196_561}, r"\[1, 196560\], got 196561"),
        ({"name": "leech_subset", "size": 10, "dim": 8}, "got dim 8"),
        ({"name": "fibonacci", "size": 10, "dim": 1}, "dim must be at least 2"),
    ],
)
def test_impossible_codes_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_code(**arguments)

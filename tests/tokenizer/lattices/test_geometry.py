from __future__ import annotations

import math

import pytest

from lambda24.tokenizer.lattices.codes import TableCode, build_code
from lambda24.tokenizer.lattices.geometry import code_geometry
from lambda24.tokenizer.lattices.spheres import fibonacci_sphere


def test_leech_shell() -> None:
    geometry = code_geometry(build_code("leech"), num_samples=20_000, num_rows=16)
    assert geometry.minimum_chord == pytest.approx(1, abs=1e-5)
    assert geometry.kissing_number == 4600
    assert geometry.mse == pytest.approx(0.4448, abs=0.0015)
    assert geometry.mse == pytest.approx(2 - 2 * geometry.mean_cosine)
    assert 0.7 < geometry.worst_cosine < geometry.mean_cosine
    assert geometry.bits_per_dimension == pytest.approx(math.log2(196_560) / 24)
    assert (geometry.size, geometry.dim, geometry.rows_checked) == (196_560, 24, 16)


def test_released_codebook_is_closer_together() -> None:
    geometry = code_geometry(build_code("slq_released"), num_samples=20_000, num_rows=16)
    assert geometry.minimum_chord == pytest.approx(math.sqrt(3) / 2, abs=1e-5)
    assert geometry.kissing_number == 128
    assert geometry.mse == pytest.approx(0.4488, abs=0.0015)


@pytest.mark.parametrize(("name", "kissing"), [("d4", 8), ("e8", 56), ("k12", 82), ("bw16", 280)])
def test_lattice_shells(name: str, kissing: int) -> None:
    geometry = code_geometry(build_code(name), num_samples=100, num_rows=100)
    assert geometry.minimum_chord == pytest.approx(1, abs=1e-5)
    assert geometry.kissing_number == kissing


def test_polygon_in_closed_form() -> None:
    geometry = code_geometry(TableCode("polygon", fibonacci_sphere(2, 10)), num_samples=50_000)
    assert geometry.minimum_chord == pytest.approx(2 * math.sin(math.pi / 10), abs=1e-5)
    assert geometry.kissing_number == 2
    half = math.pi / 10  # a uniform angle is at most this far from the nearest vertex
    assert geometry.mean_cosine == pytest.approx(math.sin(half) / half, abs=1e-3)
    assert geometry.worst_cosine == pytest.approx(math.cos(half), abs=1e-4)


def test_refuses() -> None:
    code = build_code("a2")
    with pytest.raises(ValueError, match="num_samples"):
        code_geometry(code, num_samples=0)
    with pytest.raises(ValueError, match="at least 2"):
        code_geometry(TableCode("point", fibonacci_sphere(3, 1)))

from __future__ import annotations

import math
from typing import Any

import pytest

from lambda24.scripts.reports.equal_bits import match_bits
from lambda24.tokenizer.quantizers import build_quantizer

KINDS_AT_14: list[tuple[str, dict[str, Any]]] = [
    ("spherical", {"code": "random", "dim": 24}),
    ("spherical", {"normalize": True}),
    ("bsq", {}),
    ("bsq", {"num_codebooks": 2}),
    ("lfq", {}),
    ("fsq", {}),
    ("ifsq", {}),
    ("vq", {"dim": 16}),
    ("vq_ema", {"dim": 16}),
    ("simvq", {"dim": 16}),
    ("lgq", {"dim": 16}),
    ("gsq", {"dim": 16, "groups": 2}),
]


@pytest.mark.parametrize(("kind", "settings"), KINDS_AT_14)
def test_fourteen_bits(kind: str, settings: dict[str, Any]) -> None:
    config = match_bits(kind, 14, **settings)
    quantizer = build_quantizer(config)
    assert config.kind == kind
    assert quantizer.bits == pytest.approx(14, abs=0.1)
    for name, value in settings.items():
        assert getattr(config, name) == value


def test_leech_and_its_neighbours() -> None:
    bits = math.log2(196_560)
    assert build_quantizer(match_bits("leech", bits)).bits == pytest.approx(bits)
    fsq = build_quantizer(match_bits("fsq", bits))
    assert fsq.bits == pytest.approx(bits, abs=0.01)
    assert build_quantizer(match_bits("bsq", bits, tolerance=0.5)).bits == 18


@pytest.mark.parametrize(
    ("kind", "bits", "settings", "hint"),
    [
        ("leech", 14, {}, "17.58"),
        ("bsq", 17.58, {}, "18.0000"),
        ("bsq", 13, {"num_codebooks": 2}, "num_bits="),
        ("fsq", 50, {}, "32.0000"),
        ("vq", 30, {}, "24.0000"),
        ("gsq", 3, {"groups": 4}, "4.0000"),
        ("spherical", 20, {"code": "leech_subset"}, "17.58"),
    ],
)
def test_impossible_requests_name_the_nearest(
    kind: str, bits: float, settings: dict[str, Any], hint: str
) -> None:
    with pytest.raises(ValueError, match=hint):
        match_bits(kind, bits, **settings)


def test_unknown_kind_and_no_bits() -> None:
    with pytest.raises(ValueError, match="allowed"):
        match_bits("vqq", 14)
    with pytest.raises(ValueError, match="at least 1"):
        match_bits("vq", 0)

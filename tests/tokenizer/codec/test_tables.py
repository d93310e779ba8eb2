"""Static tables: counted, kept, and coded with."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from lambda24.tokenizer.codec.range_coding import Decoder, Encoder
from lambda24.tokenizer.codec.tables import PRIOR, TABLES_FILE, StaticTables
from lambda24.tokenizer.tokens import TokenPyramid, TokenSpec

SPEC = TokenSpec(scales=(1, 3), codebook_sizes=(600, 5), code_dim=4, latent_size=3)


def pyramid(count: int, seed: int = 0) -> TokenPyramid:
    """Codes that are far from equally frequent."""
    torch.manual_seed(seed)
    columns = [(size * torch.rand(count, 10) ** 4).long() for size in SPEC.codebook_sizes]
    return TokenPyramid(torch.stack(columns, dim=2), SPEC)


def test_counts_are_those_of_each_scale_and_codebook() -> None:
    parts = [pyramid(5, 1), pyramid(3, 2)]
    tables = StaticTables.fit(parts, SPEC)
    everything = torch.cat([part.indices for part in parts])
    for k, places in enumerate((slice(0, 1), slice(1, 10))):
        for g in range(2):
            for code in (0, 1, 4):
                expected = int((everything[:, places, g] == code).sum())
                assert int(tables.counts[k][g][code]) == expected


def test_coded_length_is_the_cross_entropy() -> None:
    tables, own = StaticTables.fit([pyramid(400)], SPEC), pyramid(200, 3)
    for k in range(2):
        tokens, bits = own.scale(k).flatten(0, 1), 0.0
        for g, table in enumerate(tables.counts[k]):
            shares = (table.double() + PRIOR) / (table.double() + PRIOR).sum()
            bits -= float(shares[tokens[:, g]].log2().sum())
        encoder = Encoder()
        tables.code(encoder, k, tokens, len(tokens))
        data = encoder.bytes()
        assert 8 * len(data) == pytest.approx(bits, rel=2e-3, abs=40)
        assert bits < len(tokens) * math.log2(3000) * 0.95
        assert torch.equal(tables.code(Decoder(data), k, None, len(tokens)), tokens)


def test_saved_tables_are_the_same(tmp_path: Path) -> None:
    tables = StaticTables.fit([pyramid(20)], SPEC)
    tables.save(tmp_path)
    assert StaticTables.load(tmp_path, SPEC).digest() == tables.digest()
    assert StaticTables.fit([pyramid(20, 9)], SPEC).digest() != tables.digest()
    other = TokenSpec(scales=(1, 3), codebook_sizes=(600, 6), code_dim=4, latent_size=3)
    with pytest.raises(ValueError, match=r"must have sizes .*6\).* got .*5\)"):
        StaticTables.load(tmp_path, other)


def test_missing_and_damaged_tables(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"has no {TABLES_FILE}"):
        StaticTables.load(tmp_path, SPEC)
    (tmp_path / TABLES_FILE).write_bytes(b"no tables")
    with pytest.raises(ValueError, match="is damaged"):
        StaticTables.load(tmp_path, SPEC)

"""Static code tables: how often each code of each scale occurs among a training set's tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lambda24.tokenizer.codec.range_coding import Coder, code_categories
from lambda24.tokenizer.tokens import TokenPyramid, TokenSpec

TABLES_FILE = "code_tables.safetensors"
PRIOR = 0.1  # occurrences of every code that are added to those counted


@dataclass(frozen=True)
class StaticTables:
    """Occurrences of codes: `counts[k][g]` int32 `(V_g,)` of scale k and codebook g."""

    spec: TokenSpec
    counts: tuple[tuple[Tensor, ...], ...]

    def __post_init__(self) -> None:
        shapes = tuple(tuple(len(table) for table in scale) for scale in self.counts)
        expected = (tuple(self.spec.codebook_sizes),) * self.spec.num_scales
        if shapes != expected:
            raise ValueError(f"tables must have sizes {expected}, got {shapes}")

    @classmethod
    def fit(cls, pyramids: Iterable[TokenPyramid], spec: TokenSpec) -> StaticTables:
        """Counts the tokens of a training set.

        Raises:
            ValueError: tokens of another spec.
        """
        counts = [
            [torch.zeros(size, dtype=torch.int64) for size in spec.codebook_sizes]
            for _ in spec.scales
        ]
        for tokens in pyramids:
            if tokens.spec != spec:
                raise ValueError(f"tokens have spec {tokens.spec}, tables have {spec}")
            for k in range(spec.num_scales):
                for g, size in enumerate(spec.codebook_sizes):
                    flat = tokens.scale(k)[..., g].flatten().cpu()
                    counts[k][g] += torch.bincount(flat, minlength=size)
        return cls(spec, tuple(tuple(t.to(torch.int32) for t in scale) for scale in counts))

    def code(self, coder: Coder, scale: int, tokens: Tensor | None, count: int) -> Tensor:
        """Codes `count` tokens int64 `(count, G)` of a scale; None for a decoder."""
        columns = []
        for g, table in enumerate(self.counts[scale]):
            weights = (table.double() + PRIOR).log()[None]
            own = None if tokens is None else tokens[:, g]
            columns.append(code_categories(coder, weights, own, count))
        return torch.stack(columns, dim=1)

    def digest(self) -> str:
        """SHA-256 of the counts, in hexadecimal."""
        found = hashlib.sha256()
        for table in (t for scale in self.counts for t in scale):
            found.update(table.numpy().tobytes())
        return found.hexdigest()

    def save(self, folder: Path) -> None:
        """Writes the tables beside a model."""
        named = {
            f"scale_{k}.codebook_{g}": table
            for k, scale in enumerate(self.counts)
            for g, table in enumerate(scale)
        }
        save_file(named, folder / TABLES_FILE)

    @classmethod
    def load(cls, folder: Path, spec: TokenSpec) -> StaticTables:
        """Reads the tables of a model folder.

        Raises:
            ValueError: no tables there, or those of another pyramid.
        """
        file = folder / TABLES_FILE
        try:
            named = load_file(file)
        except FileNotFoundError as error:
            raise ValueError(f"{folder} has no {TABLES_FILE}: fit them first") from error
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        try:
            counts = tuple(
                tuple(named[f"scale_{k}.codebook_{g}"] for g in range(spec.num_codebooks))
                for k in range(spec.num_scales)
            )
        except KeyError as error:
            raise ValueError(f"{file} has no table {error}") from error
        return cls(spec, counts)

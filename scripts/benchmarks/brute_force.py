"""Nearest-code search over all codes, `(N, d)` -> `(N,)`: what structured search is measured by."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.lattices.codes import nearest_rows

Search = Callable[[Tensor], Tensor]
TILE = (256, 1024)  # vectors, codes: 1 or 2 MB of scores


def tiled_search(codes: Tensor, rows: int, columns: int) -> Search:
    """All codes, in tiles of `rows` vectors by `columns` codes."""
    return lambda z: nearest_rows(z, codes, rows=rows, codes=columns)


def dense_search(codes: Tensor) -> Search:
    """One product of all vectors with all codes, as in the official code."""
    return lambda z: (-(z @ codes.T)).argmin(1)


def faiss_search(codes: Tensor) -> Search | None:
    """FAISS' exact inner-product index, or None where FAISS is not installed."""
    if find_spec("faiss") is None:
        return None
    faiss = import_module("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(codes.shape[1])
    index.add(codes.numpy())
    return lambda z: torch.from_numpy(index.search(z.numpy(), 1)[1][:, 0])


class HalfSearch:
    """Brute force over one of each pair ±c of the Leech codes: the least work without structure.

    A pass over tiles keeps the largest |score| of each tile; the code is then looked for in the
    winning tile only. Ties within rounding may go to either code.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        codes = leech.codebook()
        first = codes.gather(1, (codes != 0).to(torch.uint8).argmax(1, keepdim=True))[:, 0]
        self.plus = (first > 0).nonzero()[:, 0]
        self.minus = leech.rank(-codes[self.plus])
        tiles = codes[self.plus].to(dtype).split(TILE[1])
        self.tiles = [tile.T.contiguous() for tile in tiles]  # (24, codes), integer coordinates

    def best(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Largest products with integer codes `(N,)`, and these codes; `z` in the tables' dtype."""
        parts = [self._best(part) for part in z.split(TILE[0])]
        scores, indices = zip(*parts, strict=True)
        return torch.cat(scores), torch.cat(indices)

    def _best(self, z: Tensor) -> tuple[Tensor, Tensor]:
        memory = z.new_empty(len(z) * TILE[1])
        sizes = []
        for tile in self.tiles:
            scores = memory[: len(z) * tile.shape[1]].view(len(z), -1)
            torch.mm(z, tile, out=scores)
            sizes.append(torch.maximum(scores.amax(1), -scores.amin(1)))
        best, winner = torch.stack(sizes).max(0)
        indices = torch.empty_like(winner)
        for number in winner.unique().tolist():
            rows = (winner == number).nonzero()[:, 0]
            scores = z[rows] @ self.tiles[number]
            column = scores.abs().argmax(1)
            positive = scores.gather(1, column[:, None])[:, 0] >= 0
            column += number * TILE[1]
            indices[rows] = torch.where(positive, self.plus[column], self.minus[column])
        return best, indices

    def __call__(self, z: Tensor) -> Tensor:
        return self.best(z)[1]

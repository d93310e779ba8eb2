"""What the lattice softmax is compared with: sums over all 196,560 codes, by definition."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lambda24.tokenizer.lattices import leech


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def cells() -> Tensor:
    """Columns of the 24 coordinates of each code, `(24, 196560)`."""
    return leech.codebook(torch.int64).T.contiguous() + 4


@pytest.fixture(scope="session")
def all_code_scores(cells: Tensor) -> Callable[[Tensor], Tensor]:
    """`scores (N, 24, 9)` -> `(N, 196560)`, by definition."""

    def gather(scores: Tensor) -> Tensor:
        total = scores.new_zeros(len(scores), leech.NUM_CODES)
        for coordinate, column in enumerate(cells):
            total = total + scores[:, coordinate].index_select(1, column)
        return total

    return gather


@pytest.fixture(scope="session")
def marginals_of(cells: Tensor) -> Callable[[Tensor], Tensor]:
    """Probabilities `(N, 196560)` -> p(c_i = v) `(N, 24, 9)`, by definition."""

    def marginals(probabilities: Tensor) -> Tensor:
        result = probabilities.new_zeros(len(probabilities), 24, 9)
        for coordinate, column in enumerate(cells):
            result[:, coordinate].index_add_(1, column, probabilities)
        return result

    return marginals

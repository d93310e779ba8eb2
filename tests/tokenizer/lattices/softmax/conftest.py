"""The oracle of the lattice softmax."""

from tests.oracles.code_sums import (  # noqa: F401
    all_code_scores,
    cells,
    marginals_of,
    same_numbers_every_time,
)

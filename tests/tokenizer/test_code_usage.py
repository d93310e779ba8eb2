import numpy as np
import pytest
import torch

from tokenizer.code_usage import code_usage


def test_usage_equals_numpy() -> None:
    indices = torch.randint(0, 20, (300, 2)) * torch.tensor([1, 3])
    usage = code_usage(indices, (64, 64))
    entropies = []
    for column in indices.numpy().T:
        counts = np.bincount(column)
        share = counts[counts > 0] / len(column)
        entropies.append(-(share * np.log2(share)).sum())
    assert usage.entropy_bits == pytest.approx(sum(entropies))
    assert usage.perplexity == pytest.approx(2 ** np.mean(entropies))
    assert usage.usage == pytest.approx(
        np.mean([len(np.unique(c)) / 64 for c in indices.numpy().T])
    )


def test_codebooks_of_unequal_sizes_count_by_their_codes() -> None:
    indices = torch.tensor([[0, 1], [1, 1], [2, 2], [3, 2]])
    usage = code_usage(indices, (4, 8))
    assert usage.codes_used == 4 + 2
    assert usage.usage == pytest.approx(6 / 12)
    assert usage.entropy_bits == pytest.approx(2 + 1)
    assert usage.perplexity == pytest.approx(2**1.5)

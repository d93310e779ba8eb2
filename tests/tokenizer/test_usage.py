"""Usage against counting with Python, of batches and of windows."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from lambda24.tokenizer.tokens import TokenPyramid, TokenSpec
from lambda24.tokenizer.usage import UsageWindow, batch_usage, code_usage, usage

SPEC = TokenSpec(scales=(1, 2, 3), codebook_sizes=(50, 7), code_dim=4, latent_size=3)


def make(seed=0, batch=20):
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(size, (batch, 14), generator=generator) for size in (50, 7)]
    return TokenPyramid(torch.stack(columns, dim=-1), SPEC)


def counts_of(batches, scale, codebook):
    return Counter(
        index
        for tokens in batches
        for index in tokens.scale(scale)[..., codebook].flatten().tolist()
    )


def bits(counts):
    total = sum(counts.values())
    return -sum(n / total * math.log2(n / total) for n in counts.values())


def test_a_batch_by_counting():
    tokens = make()
    found = usage(tokens)
    for k in range(3):
        counts = [counts_of([tokens], k, g) for g in range(2)]
        assert found[f"codes_{k}"] == len(counts[0]) + len(counts[1])
        assert found[f"entropy_bits_{k}"] == pytest.approx(sum(map(bits, counts)), abs=1e-4)
        mean = 2 ** (sum(map(bits, counts)) / 2)
        assert found[f"perplexity_{k}"] == pytest.approx(mean, rel=1e-4)


def test_one_token_and_equal_tokens():
    assert {k: float(v) for k, v in batch_usage(torch.zeros(5, 9, 1).long()).items()} == {
        "codes": 1,
        "entropy_bits": 0,
        "perplexity": 1,
    }
    assert float(batch_usage(torch.zeros(1, 1, 2).long())["codes"]) == 2


def test_a_window_adds_up_its_steps_and_then_forgets_them():
    window = UsageWindow(SPEC)
    assert window.report(lambda values: values) == {}
    batches = [make(seed) for seed in range(3)]
    for tokens in batches:
        window.add(tokens)
    found = window.report(lambda values: values)
    for k in range(3):
        counts = [counts_of(batches, k, g) for g in range(2)]
        used = (len(counts[0]) / 50 + len(counts[1]) / 7) / 2
        assert float(found[f"window_usage_{k}"]) == pytest.approx(used)
        expected = sum(map(bits, counts))
        assert float(found[f"window_entropy_bits_{k}"]) == pytest.approx(expected)
    window.add(batches[0])
    again = window.report(lambda values: values)
    alone = UsageWindow(SPEC)
    alone.add(batches[0])
    assert again == alone.report(lambda values: values)


def test_processes_count_together():
    parts = [UsageWindow(SPEC), UsageWindow(SPEC)]
    whole = UsageWindow(SPEC)
    seen = []
    for seed, part in enumerate(parts):
        part.add(make(seed))
        whole.add(make(seed))
        part.report(lambda values: seen.append(values) or values)
        part.add(make(seed))
    reports = [part.report(lambda _: (seen[0] + seen[1]) / 2) for part in parts]
    expected = whole.report(lambda values: values)
    for report in reports:
        assert report.keys() == expected.keys()
        assert all(torch.allclose(report[name], value) for name, value in expected.items())


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

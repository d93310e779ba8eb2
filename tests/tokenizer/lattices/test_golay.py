from __future__ import annotations

from itertools import combinations

import torch

from lambda24.tokenizer.lattices import golay


def _as_integers(words: torch.Tensor) -> list[int]:
    return (words.long() << torch.arange(24)).sum(1).tolist()


def test_weight_enumerator() -> None:
    weights = golay.codewords().sum(1)
    assert torch.bincount(weights).nonzero()[:, 0].tolist() == [0, 8, 12, 16, 24]
    assert torch.bincount(weights)[[0, 8, 12, 16, 24]].tolist() == [1, 759, 2576, 759, 1]


def test_code_is_linear() -> None:
    words = _as_integers(golay.codewords())
    code = set(words)
    assert len(code) == golay.NUM_WORDS
    assert all(words[1 << i] ^ word in code for i in range(12) for word in words)


def test_octads_are_the_steiner_system() -> None:
    octads = golay.octads()
    assert octads.shape == (golay.NUM_OCTADS, 24)
    fives = {five for octad in octads for five in combinations(octad.nonzero()[:, 0].tolist(), 5)}
    assert len(fives) == 42_504  # every 5-subset of 24 points, each in one octad


def test_rows_are_ordered_by_labels() -> None:
    words = _as_integers(golay.codewords())
    for x, a, b, s in ((0, 0, 0, 5), (3, 1, 6, 0), (7, 5, 2, 3)):
        bricks = [golay.brick_word(x, label) for label in (a, b, a ^ b)]
        flips = [0xFF * (s >> k & 1) for k in (2, 1, 0)]
        expected = sum((w ^ f) << 8 * k for k, (w, f) in enumerate(zip(bricks, flips, strict=True)))
        assert words[((x * 8 + a) * 8 + b) * 8 + s] == expected


def test_brick_labels_invert_brick_words() -> None:
    for x in range(8):
        for a in range(8):
            word = golay.brick_word(x, a)
            assert golay.brick_labels(word) == (x, a, 0)
            assert golay.brick_labels(word ^ 0xFF) == (x, a, 1)


def test_pairs_and_tetrads_are_the_small_words_of_their_labels() -> None:
    for x in range(1, 8):
        pairs = [golay.pair(x, t) for t in range(4)]
        assert sorted(k for pair in pairs for k in pair) == list(range(8))
        assert all(i ^ j == x for i, j in pairs)
        for t, a in enumerate(golay.tetrad_labels(x)):
            both = golay.tetrad(x, t, 0) + golay.tetrad(x, t, 1)
            assert len(golay.tetrad(x, t, 0)) == 4
            assert sorted(both) == list(range(8))
            word = sum(1 << k for k in golay.tetrad(x, t, 0))
            assert golay.brick_labels(word)[:2] == (x, a)


def test_tables_are_copies() -> None:
    golay.codewords().zero_()
    golay.octads().zero_()
    assert golay.codewords().sum() == 24 * 2048
    assert golay.octads().sum() == 8 * 759

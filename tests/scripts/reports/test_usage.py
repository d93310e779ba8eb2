import math

import pytest
import torch

from lambda24.scripts.reports.usage import draw_usage, scale_usage
from lambda24.tokenizer.tokens import TokenPyramid, TokenSpec

SPEC = TokenSpec(scales=(1, 2), codebook_sizes=(6, 4), code_dim=2, latent_size=2)


def pyramid() -> TokenPyramid:
    """Three images; scale 0 has 3 tokens, scale 1 has 12."""
    first = torch.tensor([[5, 0, 0, 1, 1], [5, 1, 1, 1, 1], [2, 1, 1, 4, 4]])  # (3, 5)
    second = torch.tensor([[0, 3, 3, 3, 3], [1, 3, 3, 3, 3], [2, 3, 3, 3, 3]])
    return TokenPyramid(torch.stack([first, second], dim=-1), SPEC)


def test_usage_of_a_scale() -> None:
    coarse, fine = scale_usage(pyramid(), 0), scale_usage(pyramid(), 1)
    assert (coarse.side, coarse.num_tokens) == (1, 3)
    assert coarse.used.codes_used == 2 + 3
    assert (coarse.most_codes, coarse.most_bits) == (6, pytest.approx(2 * math.log2(3)))
    # Codes 2 once and 5 twice; 0, 1, 2 once each.
    assert coarse.occurrences == (4, 1)
    assert (fine.side, fine.num_tokens, fine.most_codes) == (2, 12, 10)
    assert fine.most_bits == pytest.approx(math.log2(6) + 2)
    # 0 and 4 twice, 1 eight times; 3 twelve times.
    assert fine.occurrences == (0, 2, 0, 2)


def test_figure_shows_usage() -> None:
    tokens = pyramid()
    codes, entropy, histogram = draw_usage(tokens).axes
    scales = [scale_usage(tokens, k) for k in range(2)]
    heights = [bar.get_height() for bar in codes.patches]
    assert heights == [5, 4]
    assert codes.lines[0].get_ydata().tolist() == [6, 10]
    assert [bar.get_height() for bar in entropy.patches] == [s.used.entropy_bits for s in scales]
    assert entropy.lines[0].get_ydata().tolist() == [scale.most_bits for scale in scales]
    assert [tuple(line.get_ydata()) for line in histogram.lines] == [(4, 1), (0, 2, 0, 2)]
    labels = [text.get_text() for text in histogram.get_xticklabels()]
    assert labels == ["1", "2-3", "4-7", "8-15"]

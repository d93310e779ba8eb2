"""KVCache: boundaries, views, errors."""

import pytest
import torch

from lambda24.generator.cache import KVCache
from lambda24.tokenizer.tokens import TokenSpec

SPEC = TokenSpec(scales=(1, 2), codebook_sizes=(8,), code_dim=4, latent_size=2)


def make(batch_size: int = 3) -> KVCache:
    return KVCache(SPEC.scale_lengths, num_layers=2, batch_size=batch_size, num_heads=2, head_dim=4)


def test_append_returns_everything_so_far_and_advance_moves_the_length():
    cache = make()
    first = torch.randn(2, 3, 2, 1, 4)
    second = torch.randn(2, 3, 2, 4, 4)
    keys, values = cache.append(1, first[0], first[1])
    assert torch.equal(keys, first[0])
    assert torch.equal(values, first[1])
    assert cache.length == 0
    cache.advance()
    assert cache.length == 1
    keys, values = cache.append(1, second[0], second[1])
    assert torch.equal(keys, torch.cat([first[0], second[0]], dim=2))
    assert torch.equal(values, torch.cat([first[1], second[1]], dim=2))
    cache.advance()
    assert cache.length == SPEC.length
    cache.reset()
    assert cache.length == 0


def test_first_shares_memory_and_has_its_own_length():
    cache = make()
    cache.append(0, torch.ones(3, 2, 1, 4), torch.ones(3, 2, 1, 4))
    cache.advance()
    view = cache.first(2)
    keys, _ = view.append(0, torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 4, 4))
    assert keys[:, :, 0].eq(1).all()
    view.advance()
    assert (view.length, cache.length, view.batch_size) == (5, 1, 2)
    with pytest.raises(ValueError, match=r"\[1, 3\], got 4"):
        cache.first(4)


def test_memory_is_layers_x_batch_x_width_x_length():
    assert make().num_bytes == 2 * 4 * (2 * 3 * 2 * 4 * SPEC.length)


def test_wrong_length_and_overflow_raise():
    cache = make()
    with pytest.raises(ValueError, match=r"step 0 must be \(3, 2, 1, 4\), got \(3, 2, 4, 4\)"):
        cache.append(0, torch.zeros(3, 2, 4, 4), torch.zeros(3, 2, 4, 4))
    cache.advance()
    cache.advance()
    with pytest.raises(ValueError, match="all 2 steps"):
        cache.append(0, torch.zeros(3, 2, 1, 4), torch.zeros(3, 2, 1, 4))

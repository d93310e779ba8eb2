"""Block-causal masks."""

import torch

from lambda24.generator.masks import block_causal_mask, scale_ids, wants_flex_attention
from lambda24.tokenizer.tokens import TokenSpec

SPEC = TokenSpec(scales=(1, 2, 4), codebook_sizes=(8,), code_dim=4, latent_size=4)


def test_scale_ids_count_each_scale():
    assert scale_ids(SPEC).tolist() == [0] + [1] * 4 + [2] * 16


def test_mask_is_full_inside_a_scale_and_causal_between():
    mask = block_causal_mask(scale_ids(SPEC))
    assert mask.dtype == torch.bool
    for query in range(SPEC.length):
        own = next(k for k in range(3) if query < SPEC.offsets[k + 1])
        expected = [key < SPEC.offsets[own + 1] for key in range(SPEC.length)]
        assert mask[query].tolist() == expected


def test_flex_attention_is_for_long_pyramids_on_cuda_only():
    long = TokenSpec(scales=(1, 8, 24), codebook_sizes=(8,), code_dim=4, latent_size=24)
    assert not wants_flex_attention(long, torch.device("cpu"))
    assert not wants_flex_attention(SPEC, torch.device("cuda"))

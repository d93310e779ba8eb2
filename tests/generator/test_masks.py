"""Block-causal masks."""

from dataclasses import replace

import pytest
import torch

from lambda24.generator import model
from lambda24.generator.config import GeneratorConfig
from lambda24.generator.heads import CategoricalHeadConfig
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


def test_where_flex_attention_serves_its_mask_is_built_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which needs a GPU: here only that the model asks for it, of its own steps."""
    built: list[torch.Tensor] = []

    def build(ids: torch.Tensor) -> list[torch.Tensor]:
        built.append(ids)
        return built

    monkeypatch.setattr(model, "wants_flex_attention", lambda spec, device: True)
    monkeypatch.setattr(model, "flex_block_mask", build)
    config = GeneratorConfig(depth=1, width=16, num_heads=2, num_classes=2, phases=(1, 1, 2))
    config = replace(config, head=CategoricalHeadConfig())
    generator = model.NextScaleGenerator(config, SPEC)
    assert generator._mask() is built
    assert generator._mask() is built
    assert [ids.tolist() for ids in built] == [generator.step_ids.tolist()]

"""Grid coordinates and rotary embedding."""

from dataclasses import replace

import pytest
import torch

from lambda24.generator.config import GeneratorConfig
from lambda24.generator.embeddings import grid_coordinates, rope_table, rotate
from lambda24.generator.heads import CategoricalHeadConfig
from lambda24.generator.model import NextScaleGenerator
from lambda24.generator.presets import preset
from lambda24.tokenizer.tokens import TokenSpec

SPEC = TokenSpec(scales=(1, 2, 3, 4), codebook_sizes=(8,), code_dim=4, latent_size=4)


def test_centers_are_the_mean_of_the_fine_cells_they_cover():
    coordinates = grid_coordinates(SPEC)
    assert coordinates[0].tolist() == [1.5, 1.5]
    assert coordinates[1:5].tolist() == [[0.5, 0.5], [0.5, 2.5], [2.5, 0.5], [2.5, 2.5]]
    assert coordinates[-16:].tolist() == [[y, x] for y in range(4) for x in range(4)]


def test_corners_are_infinitys_rounded_coordinates():
    coordinates = grid_coordinates(SPEC, "corners")
    assert coordinates[0].tolist() == [0, 0]
    assert coordinates[1:5].tolist() == [[0, 0], [0, 2], [2, 0], [2, 2]]
    assert coordinates[5:8, 1].tolist() == [0, 1, 3]  # round(i * 4 / 3)


def test_infinity_counts_on_a_grid_of_64() -> None:
    """At every resolution: what its released code rotates a scale of side 6 by, as numbers."""
    spec = TokenSpec(scales=(1, 6, 16), codebook_sizes=(8,), code_dim=4, latent_size=16)
    coordinates = grid_coordinates(spec, "corners", 64)
    assert coordinates[1:7, 1].tolist() == [0, 11, 21, 32, 43, 53]
    assert coordinates[-16:, 1].tolist() == list(range(0, 64, 4))
    assert torch.equal(grid_coordinates(spec, "corners", 16), grid_coordinates(spec, "corners"))
    config = GeneratorConfig(
        depth=1, width=16, num_heads=2, num_classes=2, rope_grid="corners", rope_reference=64
    )
    config = replace(config, head=CategoricalHeadConfig())
    found = NextScaleGenerator(config, spec).rope
    assert torch.equal(found, rope_table(spec, 8, grid="corners", reference=64))


@pytest.mark.parametrize("name", ["infinity-cc-12", "infinity-cc-16", "infinity-cc-24"])
def test_presets_of_infinity_have_its_grid(name: str) -> None:
    config = preset(name).config
    assert (config.rope_grid, config.rope_reference) == ("corners", 64)


def test_rotation_keeps_lengths_and_makes_products_depend_on_differences():
    table = rope_table(SPEC, 8)
    x = torch.randn(1, SPEC.length, 1, 8)
    assert torch.allclose(rotate(x, table).norm(dim=-1), x.norm(dim=-1), atol=1e-6)
    q, k = torch.randn(8), torch.randn(8)
    rotated_q = rotate(q.expand(1, SPEC.length, 1, 8), table)[0, -16:, 0].view(4, 4, 8)
    rotated_k = rotate(k.expand(1, SPEC.length, 1, 8), table)[0, -16:, 0].view(4, 4, 8)
    for y, x in ((1, 0), (0, 1), (2, 1)):
        products = [rotated_q[i, 3] @ rotated_k[i - y, 3 - x] for i in (2, 3)]
        products += [rotated_q[3, i] @ rotated_k[3 - y, i - x] for i in (1, 2)]
        assert torch.allclose(torch.stack(products), products[0], atol=1e-5)


def test_y_and_x_turn_different_pairs():
    cos, sin = rope_table(SPEC, 8)
    angles = torch.atan2(sin, cos)
    below, beside = -16 + 4, -16 + 1  # one row down, one column right of the last grid's corner
    assert angles[below].tolist() == pytest.approx([1, 0.01, 0, 0])
    assert angles[beside].tolist() == pytest.approx([0, 0, 1, 0.01])


def test_head_dim_must_be_divisible_by_four():
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        rope_table(SPEC, 6)

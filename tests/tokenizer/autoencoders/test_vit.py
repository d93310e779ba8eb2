"""The ViT autoencoder: published sizes, patches, positions on other grids, options."""

import copy
from dataclasses import replace

import pytest
import torch
from timm.models.vision_transformer import Block

from lambda24.tokenizer.autoencoders.build import preset
from lambda24.tokenizer.autoencoders.vit import Trunk, ViTConfig, ViTDecoder, ViTEncoder

SMALL = ViTConfig(patch_size=4, width=16, num_heads=2, encoder_blocks=2, decoder_blocks=2)
GRID = 4


def build(config=SMALL, grid=GRID, latent_channels=24):
    torch.manual_seed(0)
    return ViTEncoder(config, latent_channels, grid), ViTDecoder(config, latent_channels, grid)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_sizes():
    with torch.device("meta"):
        encoder, decoder = build(preset("vit-base"), grid=32)
    assert (count(encoder), count(decoder)) == (86_009_880, 88_815_552)
    # 86.0 M + 88.8 M, and 0.04 M for the linear maps to the latent and back.
    maps = count(encoder.latent), count(decoder.latent)
    assert sum(maps) == 37_656
    assert [(count(h) - m) / 1e6 for h, m in zip((encoder, decoder), maps, strict=True)] == (
        pytest.approx([86.0, 88.8], abs=0.05)
    )


def test_any_size_that_the_patch_divides():
    encoder, decoder = build()
    for height, width in ((16, 16), (8, 24)):
        latent = encoder(torch.rand(2, 3, height, width))
        assert latent.shape == (2, 24, height // 4, width // 4)
        assert decoder(latent).shape == (2, 3, height, width)


def test_each_latent_position_becomes_its_own_patch():
    """Without blocks to mix them, a change at one position changes that patch of the image only."""
    _, decoder = build()
    decoder.trunk.blocks = torch.nn.ModuleList()
    latent = torch.randn(1, 24, GRID, GRID)
    other = latent.clone()
    other[..., 1, 2] += 1
    changed = (decoder(latent) != decoder(other)).any(dim=1)[0]
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[4:8, 8:12] = True
    assert torch.equal(changed, expected)


def test_positions_of_another_grid_are_interpolated():
    trunk = Trunk(SMALL, 1, GRID)
    assert trunk.position_table(GRID, GRID) is trunk.positions
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    with torch.no_grad():
        trunk.positions[0, :, 0], trunk.positions[0, :, 1] = rows.flatten(), columns.flatten()
    table = trunk.position_table(4, 8).reshape(4, 8, 16)
    assert torch.allclose(table[:, 3, 0], torch.arange(4.0), atol=1e-4)  # rows are not stretched
    # Columns are, by 2: pixel centres, so 3.5 * 4 / 8 - 0.5 = 1.25; edges aside.
    middle = torch.tensor([1.25, 1.75])
    assert torch.allclose(table[1, 3:5, 1], middle, atol=0.02)


def test_positions_of_a_grid_not_trained_on_still_learn():
    encoder, _ = build()
    encoder(torch.rand(1, 3, 8, 24)).square().sum().backward()
    assert encoder.trunk.positions.grad.abs().sum() > 0


def test_last_weight_makes_the_output():
    for half, x in zip(
        build(), (torch.rand(1, 3, 16, 16), torch.rand(1, 24, GRID, GRID)), strict=True
    ):
        assert half(x).abs().max() > 0
        with torch.no_grad():
            half.last_weight.zero_()
        assert half(x).abs().max() == 0  # biases start at zero


def test_compiled_blocks_agree_and_copies_run_eagerly():
    encoder, _ = build(replace(SMALL, checkpoint_activations=True))
    images = torch.rand(1, 3, 16, 16)
    names, before = list(encoder.state_dict()), encoder(images)
    calls = []
    encoder.compile(backend=lambda graph, _: calls.append(graph) or graph.forward, fullgraph=True)
    torch.testing.assert_close(encoder(images), before)
    assert len(calls) == 1  # one compilation for all blocks
    assert list(encoder.state_dict()) == names
    assert torch.equal(copy.deepcopy(encoder)(images), before)
    assert sum(isinstance(module, Block) for module in encoder.modules()) == 2


def test_refuses_impossible_sizes():
    with pytest.raises(ValueError, match="width 100 must be divisible by num_heads 12"):
        ViTConfig(width=100)
    with pytest.raises(ValueError, match="encoder_blocks 0"):
        ViTConfig(encoder_blocks=0)


def test_blocks_do_not_depend_on_timms_defaults():
    """A pre-norm block written out: LayerNorm with eps 1e-5, exact GELU, heads of full attention.

    Inputs as small as 3e-3, whose variance is about 1e-5, make eps matter.
    """
    encoder, decoder = build()
    norms = [m for half in (encoder, decoder) for m in half.modules() if "Norm" in type(m).__name__]
    assert [norm.eps for norm in norms] == [1e-5] * 12
    block = encoder.trunk.blocks[0]
    x = 3e-3 * torch.randn(2, 5, 16)
    functional = torch.nn.functional
    with torch.no_grad():
        q, k, v = (
            part.unflatten(-1, (2, 8)).transpose(1, 2)
            for part in block.attn.qkv(functional.layer_norm(x, (16,), eps=1e-5)).chunk(3, dim=-1)
        )
        weights = (q @ k.mT / 8**0.5).softmax(dim=-1)
        y = x + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        hidden = block.mlp.fc1(functional.layer_norm(y, (16,), eps=1e-5))
        expected = y + block.mlp.fc2(hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)
        torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-7)

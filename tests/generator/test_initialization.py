from dataclasses import replace

import pytest
import torch

from lambda24.generator.config import GeneratorConfig
from lambda24.generator.heads import CategoricalHeadConfig
from lambda24.generator.model import NextScaleGenerator
from lambda24.tokenizer.tokens import TokenSpec

SPEC = TokenSpec(scales=(1, 2, 4), codebook_sizes=(11,), code_dim=6, latent_size=4)
CONFIG = GeneratorConfig(
    depth=2,
    width=192,
    num_heads=4,
    num_classes=5,
    head=CategoricalHeadConfig(),
    position="learned",
    adaln_init=0.5,
    gamma_init=1e-3,
)


def test_initial_weights_follow_var():
    torch.manual_seed(0)
    model = NextScaleGenerator(CONFIG, SPEC)
    std = (3 * 192) ** -0.5
    block = model.blocks[0]
    close = {"rel": 0.05}
    assert block.mlp.fc1.weight.std().item() == pytest.approx(std, **close)
    assert block.mlp.fc2.weight.std().item() == pytest.approx(std / 2, **close)
    assert block.attention.proj.weight.std().item() == pytest.approx(std / 2, **close)
    assert block.adaln.weight[:384].std().item() == pytest.approx(std * 1e-3, **close)
    assert block.adaln.weight[384:].std().item() == pytest.approx(std * 0.5, **close)
    assert model.head_adaln.weight.std().item() == pytest.approx(std * 0.5, **close)
    assert model.position_table.std().item() == pytest.approx(std, **close)
    assert all(p.abs().sum() == 0 for n, p in model.named_parameters() if n.endswith("bias"))
    assert model.head.linears[0].weight.std().item() == pytest.approx(std * 0.02, rel=0.1)


def test_a_shared_adaln_layer_starts_open() -> None:
    """As in the released code: factors scale the blocks' tables, never the layer that they share.

    Gamma of eight layers then starts at about 7.4e-3 (the official code, run), not at 2e-7.
    """
    torch.manual_seed(0)
    config = replace(CONFIG, adaln="shared", depth=8)
    model = NextScaleGenerator(config, SPEC)
    assert model.shared_adaln is not None
    std = (3 * 192) ** -0.5
    assert model.shared_adaln.weight.std().item() == pytest.approx(std, rel=0.05)
    tables = torch.stack([block.adaln_table for block in model.blocks])
    assert tables[:, :2].std().item() == pytest.approx(192**-0.5 * 1e-3, rel=0.05)
    assert tables[:, 2:].std().item() == pytest.approx(192**-0.5 * 0.5, rel=0.05)
    active = torch.nn.functional.silu(model.class_embedding.weight)
    gamma = model.shared_adaln(active).unflatten(1, (6, -1))[:, :2]
    assert 3e-3 < gamma.std().item() < 3e-2

import pytest
import torch

from lambda24.generator.heads import CategoricalHeadConfig
from lambda24.generator.model import GeneratorConfig, NextScaleGenerator
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

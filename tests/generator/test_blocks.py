"""Attention and block: kernels agree, biases, AdaLN."""

import pytest
import torch
import torch.nn.functional as F

from lambda24.common.optim.build import parameter_roles
from lambda24.generator.blocks import Attention, Block, DropPath, FeedForward, attend
from lambda24.generator.cpu_forms.adaln import modulate
from lambda24.generator.masks import block_causal_mask, scale_ids
from lambda24.tokenizer.tokens import TokenSpec

SPEC = TokenSpec(scales=(1, 2), codebook_sizes=(8,), code_dim=4, latent_size=2)


@pytest.mark.parametrize("masked", [True, False])
def test_bf16_training_attention_agrees_with_the_fused_kernel(masked: bool):
    q, k, v = torch.randn(3, 2, 2, SPEC.length, 8)
    mask = block_causal_mask(scale_ids(SPEC)) if masked else None
    expected = attend(q, k, v, mask, 0.7)
    halves = [part.bfloat16().requires_grad_() for part in (q, k, v)]
    out = attend(*halves, mask, 0.7)
    assert out.requires_grad
    assert torch.allclose(out.float(), expected, atol=0.05)
    assert not torch.allclose(attend(q, k, v, mask, 1.4), expected, atol=0.05)


def test_cosine_attention_ignores_the_size_of_its_input():
    attention = Attention(16, 2, qk_norm=True)
    other = Attention(16, 2, qk_norm=False)
    other.load_state_dict(attention.state_dict(), strict=False)
    x = torch.randn(1, 5, 16)
    with torch.no_grad():
        attention.qkv.weight[:32].mul_(10)
        scaled = attention(x, None, None, None)
        attention.qkv.weight[:32].div_(10)
        assert torch.allclose(attention(x, None, None, None), scaled, atol=1e-5)
        assert not torch.allclose(other(x, None, None, None), scaled, atol=1e-5)


def test_temperature_starts_at_four_and_stops_at_a_hundred():
    attention = Attention(16, 2, qk_norm=True)
    assert attention.log_temperature is not None
    assert torch.allclose(attention.log_temperature.exp(), torch.tensor(4.0))
    x = torch.randn(1, 5, 16)
    with torch.no_grad():
        attention.log_temperature.fill_(5.0)
        at_148 = attention(x, None, None, None)
        attention.log_temperature.fill_(9.0)
        assert torch.equal(attention(x, None, None, None), at_148)


def test_bf16_feed_forward_is_within_rounding_of_the_tanh_form():
    mlp = FeedForward(8, 32).bfloat16()
    x = torch.randn(64, 8).bfloat16()
    expected = mlp.fc2(F.gelu(mlp.fc1(x), approximate="tanh"))
    assert torch.allclose(mlp(x).float(), expected.float(), atol=0.01)


def test_the_table_of_shared_adaln_is_no_hidden_matrix():
    block = Block(16, 2, mlp_ratio=2.0, qk_norm=True, shared_adaln=True, drop_path=0.0)
    assert parameter_roles(block)["adaln_table"] == "embedding"


@pytest.mark.parametrize("shared", [True, False])
def test_gamma_gates_the_residual_branches(shared: bool):
    block = Block(16, 2, mlp_ratio=2.0, qk_norm=True, shared_adaln=shared, drop_path=0.0)
    condition = torch.randn(3, 16)
    if block.adaln is not None:
        torch.nn.init.zeros_(block.adaln.weight)
    else:
        assert block.adaln_table is not None
        torch.nn.init.zeros_(block.adaln_table)
        condition = torch.zeros(3, 6, 16)
    x = torch.randn(3, 5, 16)
    if block.adaln is not None:
        torch.nn.init.zeros_(block.adaln.bias)
    assert torch.equal(block(x, condition, None, None, None), x)
    with torch.no_grad():
        vectors = block.adaln.bias if block.adaln is not None else block.adaln_table.view(-1)
        vectors[:16] = 1.0  # gamma of attention
        changed = block(x, condition, None, None, None)
        zeros = torch.zeros(3, 1, 16)
        expected = x + block.attention(modulate(x, zeros, zeros), None, None, None)
    assert torch.allclose(changed, expected, atol=1e-6)


def test_drop_path_keeps_the_mean():
    drop = DropPath(0.25)
    gamma = torch.randn(4000, 1, 2)
    found = drop(gamma) / gamma
    assert torch.allclose(found[found != 0], torch.tensor(4 / 3))
    assert torch.equal(found[..., 0] == 0, found[..., 1] == 0)
    assert found.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(gamma), gamma)


@pytest.mark.parametrize("shared", [False, True])
def test_a_block_by_definition(shared: bool):
    """x + gamma1 attention(LN(x) (1 + scale1) + shift1), then the same of the MLP.

    The vectors stand in VAR's order: two gammas, two scales, two shifts.
    """
    torch.manual_seed(0)
    block = Block(16, 2, mlp_ratio=2.0, qk_norm=True, shared_adaln=shared, drop_path=0.0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(3, 5, 16)
    condition = torch.randn(3, 6, 16) if shared else torch.randn(3, 16)
    table = condition + block.adaln_table if shared else block.adaln(condition).view(3, 6, 16)
    gamma1, gamma2, scale1, scale2, shift1, shift2 = table[:, :, None].unbind(1)

    def normed(values: torch.Tensor) -> torch.Tensor:
        centred = values - values.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    expected = x + gamma1 * block.attention(normed(x) * (1 + scale1) + shift1, None, None, None)
    mixed = block.mlp(normed(expected) * (1 + scale2) + shift2)
    expected = expected + gamma2 * mixed
    torch.testing.assert_close(block(x, condition, None, None, None), expected)

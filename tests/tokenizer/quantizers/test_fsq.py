from __future__ import annotations

import math

import pytest
import torch

from lambda24.tokenizer.quantizers import build_quantizer


def test_a_line_through_all_levels() -> None:
    quantizer = build_quantizer({"kind": "fsq", "levels": [5, 8]})
    z = torch.stack([torch.linspace(-9, 9, 4001)] * 2, dim=-1)
    codes = quantizer(z).code
    assert codes[:, 0].unique().tolist() == [-1, -0.5, 0, 0.5, 1]
    assert codes[:, 1].unique().tolist() == [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75]
    assert torch.equal(quantizer(torch.zeros(1, 2)).code, torch.zeros(1, 2))


def test_index_is_mixed_radix_with_the_first_channel_fastest() -> None:
    quantizer = build_quantizer({"kind": "fsq", "levels": [3, 5, 4]})
    codes = quantizer.decode(torch.tensor([[1 + 3 * 4 + 15 * 3]]))
    assert codes.tolist() == [[0.0, 1.0, 0.5]]


@pytest.mark.parametrize("kind", ["fsq", "ifsq"])
def test_gradient_is_that_of_the_bound(kind: str) -> None:
    quantizer = build_quantizer({"kind": kind, "levels": [5]})
    z = torch.tensor([[-1.3], [0.2], [0.9]], requires_grad=True)
    quantizer(z).z_q.sum().backward()
    slope = 0.8 if kind == "ifsq" else 1.0
    # half range (L - 1)(1 + 1e-3)/2 over half width L // 2.
    expected = 2 * 1.001 / 2 * slope * (1 - torch.tanh(slope * z.detach()) ** 2)
    torch.testing.assert_close(z.grad, expected)


def test_ifsq_uses_inner_levels_evenly_on_a_normal_latent() -> None:
    z = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0))

    def unevenness(kind: str) -> float:
        indices = build_quantizer({"kind": kind, "levels": [9]}).encode(z).flatten()
        # The outermost levels own half as much of the interval [-1, 1].
        inner = torch.bincount(indices, minlength=9)[1:-1]
        return float(inner.max() / inner.min())

    assert unevenness("ifsq") < 1.15 < unevenness("fsq")


@pytest.mark.parametrize("kind", ["fsq", "ifsq"])
@pytest.mark.parametrize("levels", [(1001,), (2048, 3), (5000, 4, 3)])
def test_many_levels_stay_inside_the_codebook(kind: str, levels: tuple[int, ...]) -> None:
    quantizer = build_quantizer({"kind": kind, "levels": list(levels)})
    z = torch.linspace(-9, 9, 4001)[:, None].expand(-1, len(levels))
    quantized = quantizer(z)
    indices = quantized.indices
    assert 0 <= int(indices.min()) < int(indices.max()) < math.prod(levels)
    assert torch.equal(quantizer.decode(indices), quantized.code)
    assert quantized.code[0, 0] < -0.99
    assert quantized.code[-1, 0] > 0.99

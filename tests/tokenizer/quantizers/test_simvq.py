from __future__ import annotations

import torch

from lambda24.tokenizer.quantizers import build_quantizer


def test_one_matrix_moves_every_code() -> None:
    quantizer = build_quantizer({"kind": "simvq", "dim": 5, "codebook_size": 200})
    everything = torch.arange(200).unsqueeze(-1)
    before = quantizer.decode(everything).detach()
    quantized = quantizer(torch.randn(3, 5))
    quantizer.total_loss(quantized.losses).backward()
    with torch.no_grad():
        quantizer.transform -= 0.1 * quantizer.transform.grad
    moved = (quantizer.decode(everything) - before).abs().amax(-1)
    assert (moved > 0).all()
    assert [name for name, _ in quantizer.named_parameters()] == ["transform"]


def test_codes_are_the_table_times_the_matrix() -> None:
    quantizer = build_quantizer({"kind": "simvq", "dim": 5, "codebook_size": 200})
    table = quantizer.frozen @ quantizer.transform.detach().T
    z = torch.randn(70, 5)
    quantized = quantizer(z)
    assert torch.equal(quantized.indices[:, 0], torch.cdist(z, table).argmin(-1))
    error = (z - table[quantized.indices[:, 0]]).square().mean()
    torch.testing.assert_close(quantized.losses["codebook"], error)
    torch.testing.assert_close(quantizer.total_loss(quantized.losses), 1.25 * error)

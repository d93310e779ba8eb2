"""Agreement with vector-quantize-pytorch 1.32.0, where it is installed."""

from __future__ import annotations

import pytest
import torch

from lambda24.tokenizer.quantizers import build_quantizer

oracle = pytest.importorskip("vector_quantize_pytorch")


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (7, 4, 6), (8, 8, 8, 6, 5)])
def test_fsq_codes_and_indices(levels: tuple[int, ...]) -> None:
    theirs = oracle.FSQ(list(levels))
    ours = build_quantizer({"kind": "fsq", "levels": list(levels)})
    z = 2 * torch.randn(1, 2000, len(levels))
    codes, indices = theirs(z)
    quantized = ours(z)
    assert torch.equal(quantized.indices[..., 0], indices.long())
    torch.testing.assert_close(quantized.code, codes, rtol=0, atol=1e-6)
    everything = torch.arange(ours.codebook_sizes[0])
    torch.testing.assert_close(
        ours.decode(everything[:, None]), theirs.indices_to_codes(everything), rtol=0, atol=1e-6
    )


def test_one_ema_step() -> None:
    theirs = oracle.VectorQuantize(
        dim=6, codebook_size=20, decay=0.9, commitment_weight=1.0, rotation_trick=False, eps=1e-5
    )
    ours = build_quantizer(
        {
            "kind": "vq_ema",
            "dim": 6,
            "codebook_size": 20,
            "decay": 0.9,
            "revival_threshold": None,
            "smoothing": 1e-6,
        }
    )
    z = torch.randn(1, 500, 6)
    state = theirs._codebook
    units = 20 / 500  # our usage is in units of uniform usage
    with torch.no_grad():
        state.embed.copy_(ours.codebook)
        state.embed_avg.copy_(ours.codebook * 25)
        state.cluster_size.fill_(25)
        ours.usage.fill_(25 * units)
        ours.sums.copy_(ours.codebook * 25 * units)
    before = ours.codebook.clone()
    _, indices, loss = theirs.train()(z)
    quantized = ours.train()(z)
    ours.after_step()
    assert torch.equal(quantized.indices[..., 0], indices)
    torch.testing.assert_close(ours.codebook, state.embed[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.usage, state.cluster_size[0] * units)
    assert (ours.codebook - before).abs().max() > 0.01
    torch.testing.assert_close(quantized.losses["commitment"], loss.reshape(()))


def test_simvq_loss() -> None:
    theirs = oracle.SimVQ(dim=6, codebook_size=40, rotation_trick=False)
    ours = build_quantizer({"kind": "simvq", "dim": 6, "codebook_size": 40})
    with torch.no_grad():
        theirs.frozen_codebook.copy_(ours.frozen)
        theirs.code_transform.weight.copy_(ours.transform)
    z = torch.randn(1, 300, 6, requires_grad=True)
    codes, indices, loss = theirs(z)
    quantized = ours(z)
    assert torch.equal(quantized.indices[..., 0], indices)
    torch.testing.assert_close(quantized.code, codes)
    torch.testing.assert_close(ours.total_loss(quantized.losses), loss)
    a = torch.autograd.grad(loss, [z, theirs.code_transform.weight])
    b = torch.autograd.grad(ours.total_loss(quantized.losses), [z, ours.transform])
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("kind", ["lfq", "bsq"])
def test_binary_entropies(kind: str) -> None:
    theirs = oracle.LFQ(dim=8, codebook_size=256, spherical=kind == "bsq")
    ours = build_quantizer({"kind": kind, "num_bits": 8, "group_bits": 8, "temperature": 0.25})
    z = torch.randn(1, 200, 8)
    result, breakdown = theirs.train()(z, inv_temperature=4.0, return_loss_breakdown=True)
    quantized = ours(z)
    assert torch.equal(quantized.indices[..., 0], result.indices)
    torch.testing.assert_close(quantized.code, result.quantized)
    # The library floors probabilities at 1e-5 inside logarithms.
    sample, batch = (quantized.losses[f"entropy_{name}"] for name in ("sample", "batch"))
    torch.testing.assert_close(sample, breakdown.per_sample_entropy, rtol=1e-3, atol=0)
    maximum = torch.tensor(256.0).log()
    torch.testing.assert_close(maximum - batch, breakdown.batch_entropy, rtol=1e-3, atol=0)

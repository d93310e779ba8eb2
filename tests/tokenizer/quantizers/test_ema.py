from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from lambda24.tokenizer.quantizers import Quantizer, build_quantizer

SMALL = {"kind": "vq_ema", "dim": 4, "codebook_size": 16, "revival_threshold": None}


def codebook_after(quantizer: Quantizer) -> torch.Tensor:
    quantizer.after_step()
    return quantizer.codebook.clone()


def test_one_step_by_hand() -> None:
    quantizer = build_quantizer({**SMALL, "decay": 0.9, "smoothing": 1e-9})
    before = quantizer.codebook.clone()
    z = torch.randn(100, 4)
    indices = quantizer(z).indices[:, 0]
    after = codebook_after(quantizer)
    for code in range(16):
        rows = z[indices == code]
        # In units of uniform usage, each code starts with weight 1.
        share = len(rows) * 16 / 100
        total = rows.sum(0) * 16 / 100
        expected = (0.9 * before[code] + 0.1 * total) / (0.9 + 0.1 * share)
        torch.testing.assert_close(after[code], expected, atol=1e-5, rtol=1e-5)


def test_one_step_per_optimizer_step_whatever_the_micro_batches() -> None:
    z = torch.randn(60, 4)
    whole, parts = build_quantizer(SMALL), build_quantizer(SMALL)
    whole(z)
    for part in z.split(20):
        parts(part)
    torch.testing.assert_close(codebook_after(parts), codebook_after(whole))
    assert int(parts.num_updates) == 1
    unchanged = codebook_after(parts)
    assert torch.equal(unchanged, codebook_after(parts))
    assert int(parts.num_updates) == 1


def test_recomputation_and_inference_do_not_count() -> None:
    z = torch.randn(60, 4, requires_grad=True)
    plain, other = build_quantizer(SMALL), build_quantizer(SMALL)
    plain(z)
    expected = codebook_after(plain)

    checkpoint(lambda x: other(x).z_q.square(), z, use_reentrant=False).sum().backward()
    with torch.no_grad():
        other(2 * z)
    other.encode(2 * z)
    other.eval()
    other(2 * z)
    other.train()
    torch.testing.assert_close(codebook_after(other), expected, rtol=0, atol=0)


def test_revival_escapes_a_bad_start() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(8, 4, generator=generator)
    noise = 0.01 * torch.randn(100, 256, 4, generator=generator)
    batches = centres[torch.randint(8, (100, 256), generator=generator)] + noise
    errors = []
    for threshold in (None, 0.1):
        config = {**SMALL, "decay": 0.8, "revival_threshold": threshold}
        quantizer = build_quantizer(config)
        with torch.no_grad():
            for buffer in (quantizer.codebook, quantizer.sums):
                buffer.copy_(torch.tensor([1000.0, 0, 0, 0]) + 0.01 * buffer)
        for z in batches:
            quantizer(z)
            quantizer.after_step()
        errors.append(float(quantizer.eval()(centres).losses["commitment"]))
    assert errors[1] < 0.1 * errors[0]


def test_revival_moves_unused_codes_onto_latents() -> None:
    quantizer = build_quantizer({**SMALL, "decay": 0.5, "revival_threshold": 0.3})
    z = 100 + torch.randn(40, 4)
    quantizer(z)
    quantizer.after_step()
    quantizer(z)
    quantizer.after_step()
    dead = (quantizer.codebook - 100).abs().amax(-1) > 20
    assert not dead.any()
    # Smoothing moves a code by a part in 1e5 of itself.
    nearest = (quantizer.codebook[:, None] - z).norm(dim=-1).amin(-1)
    assert (nearest < 0.01).sum() >= 14


def test_resuming_repeats_revival() -> None:
    config = {**SMALL, "decay": 0.5, "revival_threshold": 0.3}
    first = build_quantizer(config)
    batches = torch.randn(4, 30, 4)
    for z in batches[:2]:
        first(z)
        first.after_step()
    second = build_quantizer(config)
    second.load_state_dict(first.state_dict())
    for z in batches[2:]:
        for quantizer in (first, second):
            quantizer(z)
            quantizer.after_step()
    assert torch.equal(first.codebook, second.codebook)


def test_candidates_are_bounded() -> None:
    quantizer = build_quantizer({**SMALL, "max_candidates": 50})
    for _ in range(5):
        quantizer(torch.randn(100, 4))
    assert len(quantizer._pending.candidates) == 50

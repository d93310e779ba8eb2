"""Revival of unused codes: which, where to, and independence of how a batch is split."""

from __future__ import annotations

import pytest
import torch

from lambda24.common.config import from_dict
from lambda24.tokenizer.pyramid.multiscale import MultiScaleQuantizer, PyramidConfig
from lambda24.tokenizer.quantizers import VQConfig, build_quantizer
from lambda24.tokenizer.quantizers.revival import Candidates

KINDS = ["vq", "gsq", "lgq"]


def make(kind: str = "vq", **options: object):
    config = {"kind": kind, "dim": 4, "codebook_size": 16, "revival_threshold": 0.5}
    quantizer = build_quantizer({**config, **options})
    with torch.no_grad():  # one code near the data, fifteen far from it
        quantizer.codebook.copy_(torch.tensor([-1.0, 0, 0, 0]).expand(16, 4))
        quantizer.codebook[0, 0] = 1
    return quantizer


def data(seed: int = 0, count: int = 60) -> torch.Tensor:
    noise = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return torch.tensor([3.0, 0, 0, 0]) + 0.3 * noise


@pytest.mark.parametrize("kind", KINDS)
def test_unused_codes_move_onto_latents(kind: str) -> None:
    quantizer = make(kind, revival_decay=0.9)
    z = data()
    for _ in range(7):  # 0.9^7 = 0.478 is the first power below the threshold
        quantizer(z)
        assert (quantizer.codebook[1:, 0] == -1).all()
        quantizer.after_step()
    rows = torch.nn.functional.normalize(z, dim=1) if kind == "gsq" else z
    moved = quantizer.codebook.detach()[1:]
    assert ((moved[:, None] - rows).abs().amax(-1).amin(-1) < 1e-6).all()
    assert len(moved.unique(dim=0)) == 15
    assert torch.equal(quantizer.codebook[0].detach(), torch.tensor([1.0, 0, 0, 0]))
    assert (quantizer.revival.usage[1:] == 1).all()


def test_off_by_default_and_thresholds_are_shares() -> None:
    quantizer = build_quantizer({"kind": "vq", "dim": 4, "codebook_size": 16})
    assert not any("revival" in name for name in quantizer.state_dict())
    with pytest.raises(ValueError, match=r"revival_threshold must lie in \(0, 1\), got 1.0"):
        from_dict(VQConfig, {"revival_threshold": 1.0})
    with pytest.raises(ValueError, match=r"revival_decay must lie in \[0, 1\), got 1.0"):
        from_dict(VQConfig, {"revival_decay": 1.0})


@pytest.mark.parametrize("kind", KINDS)
def test_inference_does_not_count(kind: str) -> None:
    quantizer = make(kind)
    with torch.no_grad():
        quantizer(data())
    quantizer.eval()(data())
    quantizer.encode(data())
    quantizer.after_step()
    assert int(quantizer.revival.num_updates) == 0
    assert (quantizer.revival.usage == 1).all()


def test_resuming_repeats_revival() -> None:
    first = make()
    for seed in range(66):
        first(data(seed))
        first.after_step()
    second = make()
    second.load_state_dict(first.state_dict())
    before = first.codebook.clone()
    for seed in range(66, 72):
        for quantizer in (first, second):
            quantizer(data(seed))
            quantizer.after_step()
    assert not torch.equal(first.codebook, before)
    assert torch.equal(first.codebook, second.codebook)


@pytest.mark.parametrize("kind", ["vq", "vq_ema"])
def test_codes_of_coarse_scales_are_rare_but_not_dead(kind: str) -> None:
    """One token in 65 is the coarse one; its codes survive next to the 64 others'."""
    quantizer = build_quantizer(
        {"kind": kind, "dim": 2, "codebook_size": 64, "revival_threshold": 0.5, "seed": 1},
        passes_per_batch=2,
    )
    pyramid = MultiScaleQuantizer(
        from_dict(PyramidConfig, {"scales": [1, 8], "radius": None, "gain": "none"}), quantizer
    )
    angles = torch.arange(64) * (2 * torch.pi / 64)
    ring = torch.stack([angles.cos(), angles.sin()], dim=1)
    codes = torch.cat([20 * ring[::8], ring[:56]])  # eight far codes for the coarse scale
    usage = quantizer.usage if kind == "vq_ema" else quantizer.revival.usage
    usage.fill_(0.3)  # a little above the threshold, 0.5 over two scales
    with torch.no_grad():
        quantizer.codebook.copy_(codes)
        if kind == "vq_ema":
            quantizer.sums.copy_(0.3 * codes)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        coarse = codes[torch.randint(8, (8,), generator=generator)]
        # Details of zero mean around the coarse value: the first half of the ring and its opposite.
        half = ring[torch.randint(64, (8, 32), generator=generator)]
        fine = torch.cat([half, -half], dim=1).transpose(1, 2).unflatten(2, (8, 8))
        pyramid(coarse[:, :, None, None] + fine)
        quantizer.after_step()
    kept = quantizer.codebook.detach()[:8]
    assert torch.allclose(kept, codes[:8], atol=0.05)


def test_a_draw_is_made_of_the_draws_of_its_parts() -> None:
    rows = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))

    def draw(number: int, step: int = 7) -> Candidates:
        place = {"seed": 1, "step": torch.tensor(step), "number": number}
        return Candidates.draw(rows[number], **place, limit=20)

    merged = draw(0).merge(draw(1), 20).merge(draw(2), 20)
    again = draw(2).merge(draw(1).merge(draw(0), 20), 20)
    assert torch.equal(merged.rows, again.rows)
    share = [int((merged.rows[:, None] == part).all(-1).any(-1).sum()) for part in rows]
    assert sum(share) == 20
    assert min(share) >= 2
    assert not torch.equal(draw(0).rows, draw(0, step=8).rows)


def test_taking_repeats_latents_only_when_there_are_too_few() -> None:
    rows = torch.arange(6.0).repeat(3)[:, None]  # each value three times
    candidates = Candidates.draw(rows, seed=0, step=torch.tensor(0), number=0, limit=100)
    quantizer = make()
    assert len(candidates.take(6, quantizer, 100).unique()) == 6
    assert len(candidates.take(4, quantizer, 100).unique()) == 4
    assert len(candidates.take(9, quantizer, 100)) == 9


def test_two_processes_take_what_one_does_when_latents_are_too_few() -> None:
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    whole = Candidates.draw(rows, seed=0, step=torch.tensor(0), number=0, limit=60)
    mine, other = (Candidates(whole.rows[r::2], whole.ranks[r::2]).lowest(20) for r in range(2))
    quantizer = make()
    expected = whole.lowest(20).take(30, quantizer, 20)
    quantizer.gather = lambda part: torch.cat([part, other.ranks if part.ndim == 1 else other.rows])
    assert torch.equal(mine.take(30, quantizer, 20), expected)

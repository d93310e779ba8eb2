"""What every quantizer owes its users, whatever its kind."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lambda24.tokenizer.quantizers import Quantizer, build_quantizer
from lambda24.tokenizer.quantizers.fsq import FSQ

CONFIGS: dict[str, dict[str, Any]] = {
    "leech": {"kind": "leech"},
    "leech-normalize": {"kind": "leech", "normalize": True},
    "random": {"kind": "spherical", "code": "random", "dim": 6, "size": 300},
    "leech_type2": {"kind": "spherical"},
    "leech_subset": {"kind": "spherical", "code": "leech_subset", "size": 500},
    "released": {"kind": "spherical", "code": "slq_released"},
    "fibonacci": {"kind": "spherical", "code": "fibonacci", "dim": 3, "size": 99},
    "bsq": {"kind": "bsq", "num_bits": 11, "group_bits": 4},
    "bsq-split": {"kind": "bsq", "num_bits": 12, "num_codebooks": 3},
    "lfq": {"kind": "lfq", "num_bits": 10},
    "fsq": {"kind": "fsq", "levels": [8, 5, 3, 4]},
    "ifsq": {"kind": "ifsq", "levels": [8, 5, 3, 4]},
    "vq": {"kind": "vq", "dim": 8, "codebook_size": 128},
    "vq-cosine": {"kind": "vq", "dim": 8, "codebook_size": 128, "cosine": True},
    "vq-rotation": {"kind": "vq", "dim": 8, "codebook_size": 128, "estimator": "rotation"},
    "vq_ema": {"kind": "vq_ema", "dim": 8, "codebook_size": 128},
    "simvq": {"kind": "simvq", "dim": 8, "codebook_size": 128},
    "gsq": {"kind": "gsq", "dim": 12, "groups": 3, "codebook_size": 64},
    "gsq-renorm": {"kind": "gsq", "dim": 8, "codebook_size": 64, "renorm_output": True},
    "lgq": {"kind": "lgq", "dim": 8, "codebook_size": 128, "chunk_elements": 1024},
    "lgq-identity": {"kind": "lgq", "dim": 8, "codebook_size": 128, "estimator": "identity"},
}


@pytest.fixture(params=CONFIGS, scope="module")
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    return build_quantizer(CONFIGS[request.param])


def latents(quantizer: Quantizer, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, quantizer.dim, generator=generator)


def random_indices(quantizer: Quantizer, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randint(size, (count,), generator=generator) for size in sizes(quantizer)]
    return torch.stack(draws, dim=-1)


def sizes(quantizer: Quantizer) -> tuple[int, ...]:
    return quantizer.codebook_sizes


def digest(module: nn.Module) -> str:
    sha = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        sha.update(name.encode() + value.contiguous().numpy().tobytes())
    return sha.hexdigest()


def preimage(quantizer: Quantizer, codes: Tensor) -> Tensor:
    """A latent whose code is the given one: the code itself unless the quantizer bounds z."""
    if isinstance(quantizer, FSQ):
        rounded = codes * (quantizer.levels // 2) + quantizer.offset
        return (torch.atanh(rounded / quantizer.half_range) - quantizer.shift) / quantizer.slope
    return codes


def test_static_facts(quantizer: Quantizer) -> None:
    assert quantizer.num_codebooks == len(sizes(quantizer))
    assert quantizer.bits == pytest.approx(math.log2(math.prod(sizes(quantizer))))
    codes = quantizer.decode(random_indices(quantizer, 50)).detach()
    if quantizer.code_norm is not None:
        norms = torch.full((50,), quantizer.code_norm)
        torch.testing.assert_close(codes.norm(dim=-1), norms, rtol=1e-5, atol=0)
    assert quantizer.has_learned_codebook == any(
        name.split(".")[-1] in ("codebook", "transform") for name in quantizer.state_dict()
    )


def test_every_index_round_trips(quantizer: Quantizer) -> None:
    if len(sizes(quantizer)) == 1 and sizes(quantizer)[0] <= 10_000:
        indices = torch.arange(sizes(quantizer)[0]).unsqueeze(-1)
    else:
        indices = random_indices(quantizer, 10_000)
    codes = quantizer.decode(indices).detach()
    assert torch.equal(quantizer.encode(preimage(quantizer, codes)), indices)


@pytest.mark.parametrize("training", [True, False])
def test_value_equals_decoded_indices(quantizer: Quantizer, training: bool) -> None:
    quantizer.train(training)
    z = latents(quantizer, 4, 9)
    z = torch.cat([z, torch.zeros_like(z[:1]), z[:1] * 1e6, z[:1] * 1e-6, z[:1] * 1e30])
    quantized = quantizer(z)
    assert quantized.indices.shape == (*z.shape[:-1], quantizer.num_codebooks)
    assert quantized.indices.dtype == torch.int64
    assert quantized.z_q.dtype == quantized.code.dtype == torch.float32
    assert torch.equal(quantized.indices, quantizer.encode(z))
    decoded = quantizer.decode(quantized.indices)
    assert torch.isfinite(decoded).all()
    assert torch.equal(quantized.code, decoded)
    assert torch.equal(quantized.z_q, decoded)


def test_a_vector_does_not_depend_on_its_batch(quantizer: Quantizer) -> None:
    z = latents(quantizer, 3, 5)
    whole = quantizer.encode(z)
    assert torch.equal(quantizer.encode(z[1, 2]), whole[1, 2])
    assert torch.equal(quantizer.encode(z.flip(0)).flip(0), whole)


def test_gradients_reach_z_but_not_through_code(quantizer: Quantizer) -> None:
    z = latents(quantizer, 20).requires_grad_()
    quantized = quantizer(z)
    weights = latents(quantizer, 20, seed=5)
    (gradient,) = torch.autograd.grad((quantized.z_q * weights).sum(), z)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    if quantized.code.requires_grad:
        seen = torch.autograd.grad(
            (quantized.code * weights).sum(),
            [z, *quantizer.parameters()],
            allow_unused=True,
        )
        assert seen[0] is None
        assert all(g is not None and g.abs().sum() > 0 for g in seen[1:])
    else:
        assert not list(quantizer.parameters())


def test_losses_are_named_scalars_with_weights(quantizer: Quantizer) -> None:
    quantized = quantizer(latents(quantizer, 30))
    assert set(quantized.losses) == set(quantizer.loss_weights)
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in quantized.losses.values())
    assert not any(stat.requires_grad for stat in quantized.stats.values())
    assert quantizer.total_loss(quantized.losses).ndim == 0


def test_no_hidden_state(quantizer: Quantizer) -> None:
    quantizer.train()
    before = digest(quantizer)
    z = latents(quantizer, 40).requires_grad_()
    first = quantizer(z)
    indices = quantizer.encode(z)
    quantizer.decode(indices)
    quantizer.eval()
    quantizer(z)
    quantizer.train()
    recomputed = checkpoint(lambda x: quantizer(x).z_q, z, use_reentrant=False)
    recomputed.sum().backward()
    assert digest(quantizer) == before
    again = quantizer(z)
    assert torch.equal(again.z_q, first.z_q)
    for name, loss in first.losses.items():
        assert torch.equal(again.losses[name], loss), name
    quantizer.after_step()
    quantizer.zero_grad()


def test_autocast_changes_nothing(quantizer: Quantizer) -> None:
    z = latents(quantizer, 500)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = quantizer(z)
        indices = quantizer.encode(z)
        decoded = quantizer.decode(indices)
    outside = quantizer(z)
    assert torch.equal(inside.indices, outside.indices)
    assert torch.equal(indices, outside.indices)
    assert torch.equal(decoded, outside.code)
    for name, loss in outside.losses.items():
        assert torch.equal(inside.losses[name], loss), name
    half = z.bfloat16()
    assert torch.equal(quantizer.encode(half), quantizer.encode(half.float()))


def test_schedule_is_a_pure_function_of_the_step(quantizer: Quantizer) -> None:
    z = latents(quantizer, 30)

    def total(step: int) -> Tensor:
        quantizer.schedule(step, 1000)
        return quantizer.total_loss(quantizer(z).losses).detach()

    once = total(700)
    total(3)
    assert torch.equal(total(700), once)
    quantizer.schedule(0, 1000)


def test_checkpoints_restore_the_code() -> None:
    for name, config in CONFIGS.items():
        source = build_quantizer(config)
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.add_(torch.randn_like(parameter))
        target = build_quantizer({**config, **({"seed": 9} if "vq" in name else {})})
        target.load_state_dict(source.state_dict())
        indices = random_indices(source, 100)
        assert torch.equal(target.decode(indices), source.decode(indices)), name


def test_wrong_shapes_and_types_are_refused(quantizer: Quantizer) -> None:
    with pytest.raises(ValueError, match=f"D = {quantizer.dim}"):
        quantizer(torch.zeros(2, quantizer.dim + 1))
    with pytest.raises(ValueError, match="floating"):
        quantizer.encode(torch.zeros(2, quantizer.dim, dtype=torch.int64))
    groups = quantizer.num_codebooks
    with pytest.raises(ValueError, match=f"G = {groups}"):
        quantizer.decode(torch.zeros(2, groups + 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="int64"):
        quantizer.decode(torch.zeros(2, groups, dtype=torch.int32))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_refused(quantizer: Quantizer, number: float) -> None:
    z = torch.zeros(3, quantizer.dim)
    z[1, 0] = number
    for quantize in (quantizer, quantizer.encode):
        with pytest.raises(ValueError, match="z must be finite"):
            quantize(z)


def test_codebooks_are_not_decayed(quantizer: Quantizer) -> None:
    assert all(getattr(p, "no_weight_decay", False) for p in quantizer.parameters())


def test_unknown_kinds_and_fields_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'vqq'.*simvq"):
        build_quantizer({"kind": "vqq"})
    with pytest.raises(ValueError, match=r"codebok_size.*codebook_size"):
        build_quantizer({"kind": "vq", "codebok_size": 3})


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "fsq", "levels": [8, 2]},
        {"kind": "fsq", "levels": []},
        {"kind": "fsq", "levels": [16] * 16},
        {"kind": "bsq", "num_bits": 10, "num_codebooks": 3},
        {"kind": "bsq", "num_bits": 63},
        {"kind": "lfq", "group_bits": 11},
        {"kind": "lfq", "temperature": 0.0},
        {"kind": "vq", "codebook_size": 0},
        {"kind": "vq_ema", "decay": 1.0},
        {"kind": "vq_ema", "revival_threshold": 1.5},
        {"kind": "gsq", "dim": 7, "groups": 2},
        {"kind": "lgq", "temperature_end": 0.0},
    ],
)
def test_impossible_settings_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\d|positive"):
        build_quantizer(config)

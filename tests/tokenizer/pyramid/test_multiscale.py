"""The residual pyramid: one code path for encoding, teacher forcing and step-by-step decoding."""

from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from lambda24.common.config import from_dict
from lambda24.tokenizer.pyramid.multiscale import MultiScaleQuantizer, PyramidConfig
from lambda24.tokenizer.quantizers import build_quantizer
from lambda24.tokenizer.tokens import TokenPyramid
from lambda24.tokenizer.usage import usage


def make(quantizer=None, *, kind="leech", **options):
    quantizer = build_quantizer({"kind": kind, **(quantizer or {})})
    return MultiScaleQuantizer(PyramidConfig(scales=(1, 2, 3, 5), **options), quantizer)


def latent(batch=3, channels=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, 5, 5, generator=generator)


def test_forward_encode_and_stepwise_agree_bit_for_bit():
    pyramid = make()
    z = latent()
    quantized = pyramid(z)
    tokens = pyramid.encode(z)
    assert torch.equal(quantized.tokens.indices, tokens.indices)
    *_, last = pyramid.states(tokens)
    assert torch.equal(quantized.z_q, last.latent)


def test_the_residual_is_what_earlier_scales_left():
    """Scale by scale against the definition, with a plain nearest-code search."""
    pyramid = make(gain="fixed", initial_gains=(2.0, 1.5, 1.2, 1.0))
    tokens = pyramid.encode(latent())
    codes = pyramid.quantizer.decode(torch.arange(196_560)[:, None])
    residual = 3 * F.normalize(latent(), dim=1)
    for k, (side, gain) in enumerate(zip((1, 2, 3, 5), (2.0, 1.5, 1.2, 1.0), strict=True)):
        small = F.adaptive_avg_pool2d(residual, side).flatten(2).transpose(1, 2)
        chosen = (small @ codes.T).argmax(dim=-1)
        assert torch.equal(chosen, tokens.scale(k)[..., 0])
        maps = gain * codes[chosen].transpose(1, 2).unflatten(2, (side, side))
        residual = residual - F.interpolate(maps, (5, 5), mode="bilinear", align_corners=False)


def test_gradients_are_straight_through_to_the_latent_and_direct_to_gains():
    pyramid = make(radius=None, commitment_weight=0.0)
    z = latent().requires_grad_(True)
    weight = latent(seed=1)
    (pyramid(z).z_q * weight).sum().backward()
    assert torch.equal(z.grad, weight)
    tokens = pyramid.encode(z)
    codes = pyramid.quantizer.decode(tokens.scale(3)).transpose(1, 2).unflatten(2, (5, 5))
    expected = (pyramid.gain(3) * codes * weight).sum()  # d/d log g of g * codes
    assert float(pyramid.log_gains.grad[3]) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_the_loss_pulls_every_prefix_to_the_latent_and_the_latent_lightly_back():
    pyramid = make(radius=None, commitment_weight=0.25)  # a Leech code has no losses of its own
    z = latent().requires_grad_(True)
    quantized = pyramid(z)
    quantized.loss.backward()
    prefixes = [state.latent for state in pyramid.states(quantized.tokens)][1:]
    errors = torch.stack([(prefix - z).detach() for prefix in prefixes])  # (scales, B, C, S, S)
    assert float(quantized.loss.detach()) == pytest.approx(
        1.25 * float(errors.square().mean()), rel=1e-5
    )
    expected = -0.25 * 2 * errors.mean(0) / z.numel()
    assert torch.allclose(z.grad, expected, atol=1e-9)
    # d prefix_k / d log g_j is scale j's contribution for k >= j; the latent is held fixed.
    steps = torch.stack(prefixes).detach().diff(dim=0, prepend=torch.zeros(1, *z.shape))
    for j in range(4):
        slope = 2 * (errors[j:] * steps[j]).sum() / errors.numel()
        assert float(pyramid.log_gains.grad[j]) == pytest.approx(float(slope), rel=1e-3)


def test_more_scales_leave_a_smaller_residual():
    pyramid = make(gain="fixed", initial_gains=(2.0, 1.5, 1.2, 1.0))
    stats = pyramid(latent(batch=16)).stats
    norms = [float(stats[f"residual_norm_{k}"]) for k in range(4)]
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 0.95 * 3


@pytest.mark.parametrize("kind", ["bsq", "lfq"])
def test_gains_start_from_the_length_of_codes(kind):
    pyramid = make(kind=kind, gain="learned")
    stats = pyramid(latent(batch=16, channels=18)).stats
    norms = [float(stats[f"residual_norm_{k}"]) for k in range(4)]
    assert norms == sorted(norms, reverse=True)
    assert float(pyramid.gain(0).detach()) * pyramid.quantizer.code_norm == pytest.approx(2.0)


def test_autocast_changes_no_token():
    pyramid = make()
    with torch.autocast("cpu", torch.bfloat16):
        inside = pyramid.encode(latent())
    assert torch.equal(inside.indices, pyramid.encode(latent()).indices)


def test_encode_changes_no_state():
    pyramid = make()
    before = {name: value.clone() for name, value in pyramid.state_dict().items()}
    pyramid.train()
    pyramid.encode(latent())
    assert all(torch.equal(value, before[name]) for name, value in pyramid.state_dict().items())


KINDS = {
    "leech": {},
    "spherical": {"code": "e8"},
    "bsq": {"num_bits": 12, "group_bits": 6},
    "lfq": {"num_bits": 8},
    "fsq": {},
    "ifsq": {},
    "vq": {"dim": 6, "codebook_size": 64},
    "vq_ema": {"dim": 6, "codebook_size": 64},
    "simvq": {"dim": 6, "codebook_size": 64},
    "gsq": {"dim": 6, "groups": 2, "codebook_size": 32},
    "lgq": {"dim": 6, "codebook_size": 64},
}


@pytest.mark.parametrize("gain", ["none", "fixed", "learned"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_quantizer_trains_and_round_trips(kind, gain):
    pyramid = make(KINDS[kind], kind=kind, gain=gain, num_phis=2)
    z = latent(channels=pyramid.quantizer.dim).requires_grad_(True)
    quantized = pyramid(z)
    (quantized.z_q.square().mean() + quantized.loss).backward()
    assert torch.isfinite(z.grad).all()
    assert z.grad.abs().sum() > 0
    for name, parameter in pyramid.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    tokens = pyramid.encode(z)
    assert torch.equal(tokens.indices, quantized.tokens.indices)
    tokens.validate()
    *_, last = pyramid.states(tokens)
    assert torch.equal(last.latent, quantized.z_q)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_and_recomputation_leave_no_trace(kind):
    pyramid = make(KINDS[kind], kind=kind)
    z = latent(channels=pyramid.quantizer.dim).requires_grad_(True)

    def trained(rows, *, recompute):
        pyramid.zero_grad()
        z.grad = None
        run = partial(checkpoint, use_reentrant=False) if recompute else lambda f, x: f(x)
        run(lambda x: pyramid(x).z_q.square().sum() + pyramid(x).loss, rows).backward()
        return z.grad.clone()

    plain = trained(z, recompute=False)
    assert torch.equal(trained(z, recompute=True), plain)
    before = {name: value.clone() for name, value in pyramid.state_dict().items()}
    pyramid.quantizer.after_step()  # what training counted; nothing may be pending after this
    if kind != "vq_ema":
        assert all(torch.equal(v, before[name]) for name, v in pyramid.state_dict().items())
    before = {name: value.clone() for name, value in pyramid.state_dict().items()}
    with torch.no_grad():
        pyramid(z)
    pyramid.eval()
    pyramid(z)
    pyramid.encode(z)
    pyramid.quantizer.after_step()
    assert all(torch.equal(v, before[name]) for name, v in pyramid.state_dict().items())


OPTIONS = [
    {"down": down, "up": up, "next_inputs": inputs, "num_phis": phis}
    for down, up, inputs, phis in product(
        ("area", "bilinear", "bicubic"),
        ("bilinear", "bicubic"),
        ("area", "bilinear"),
        (None, 1, 2, 4),
    )
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_one_path_whatever_the_options(options):
    """Encoding, training, teacher forcing and decoding step by step, bit for bit."""
    pyramid = make({"dim": 6, "codebook_size": 64}, kind="vq", **options)
    with torch.no_grad():
        for parameter in pyramid.phis.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    z = latent(channels=6)
    quantized = pyramid(z)
    tokens = pyramid.encode(z)
    assert torch.equal(quantized.tokens.indices, tokens.indices)
    states = list(pyramid.states(tokens))
    assert torch.equal(quantized.z_q, states[-1].latent)
    assert torch.equal(pyramid(z).z_q, quantized.z_q)
    state = pyramid.initial_state(3, "cpu")
    for k in range(4):
        assert torch.equal(state.next_inputs, states[k].next_inputs)
        state = pyramid.accumulate(state, tokens.scale(k))
    assert torch.equal(state.latent, states[-1].latent)


def test_phi_smooths_what_gains_have_sized():
    pyramid = make({"dim": 6, "codebook_size": 64}, kind="vq", num_phis=2, up="bicubic")
    with torch.no_grad():
        for parameter in pyramid.phis.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tokens = pyramid.encode(latent(channels=6))
    total = torch.zeros(3, 6, 5, 5)
    for k, (side, phi) in enumerate(zip((1, 2, 3, 5), (0, 0, 1, 1), strict=True)):
        codes = pyramid.gain(k) * pyramid.quantizer.decode(tokens.scale(k))
        maps = codes.transpose(1, 2).unflatten(2, (side, side))
        if side < 5:
            maps = F.interpolate(maps, (5, 5), mode="bicubic", align_corners=False)
        convolution = pyramid.phis[phi]
        smoothed = F.conv2d(maps, convolution.weight, convolution.bias, padding=1)
        total = total + (maps + smoothed) / 2
    *_, last = pyramid.states(tokens)
    assert torch.allclose(last.latent, total, atol=1e-5)


def test_statistics_of_the_batch_by_scale():
    quantized = make()(latent())
    for name, value in usage(quantized.tokens).items():
        assert float(quantized.stats[name]) == pytest.approx(value)


def test_refuses_what_does_not_fit():
    pyramid = make()
    with pytest.raises(ValueError, match=r"\(B, 24, 5, 5\), got \(3, 23, 5, 5\)"):
        pyramid(latent(channels=23))
    state = pyramid.initial_state(2, "cpu")
    with pytest.raises(ValueError, match=r"\(2, 1, 1\), got \(2, 4, 1\)"):
        pyramid.accumulate(state, torch.zeros(2, 4, 1, dtype=torch.int64))
    *_, last = pyramid.states(pyramid.encode(latent()))
    with pytest.raises(ValueError, match="all 4 scales"):
        pyramid.accumulate(last, torch.zeros(3, 1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="4 positive numbers"):
        from_dict(PyramidConfig, {"scales": [1, 2, 3, 5], "initial_gains": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"num_phis must be at most .* 2, got 3"):
        from_dict(PyramidConfig, {"scales": [1, 2], "num_phis": 3})
    with pytest.raises(ValueError, match="no use"):
        from_dict(PyramidConfig, {"scales": [1], "initial_gains": [1.0], "gain": "none"})


def test_usage_counts_codes_and_bits():
    pyramid = make()
    indices = torch.zeros(4, 39, 1, dtype=torch.int64)
    indices[:2, 0, 0] = 7
    found = usage(TokenPyramid(indices, pyramid.spec))
    assert found["codes_0"] == 2
    assert found["entropy_bits_0"] == pytest.approx(1.0)
    assert found["codes_3"] == 1
    assert found["entropy_bits_3"] == 0


def test_scale_dropout_sums_the_first_scales_only():
    pyramid = make()
    z = latent().requires_grad_(True)
    quantized = pyramid(z, torch.tensor([1, 3, 4]))
    states = list(pyramid.states(pyramid.encode(z)))
    for row, kept in enumerate((1, 3, 4)):
        assert torch.equal(quantized.z_q[row], states[kept].latent[row])
    assert torch.equal(quantized.loss, pyramid(z).loss)
    quantized.z_q[0].sum().backward()
    assert z.grad[0].abs().sum() > 0
    assert z.grad[1:].abs().sum() == 0


def test_a_prefix_sums_the_first_scales_beside_all_of_them():
    pyramid = make(radius=None)
    z = latent().requires_grad_(True)
    quantized = pyramid(z, prefix=torch.tensor([1, 3, 4]))
    states = list(pyramid.states(pyramid.encode(z)))
    assert torch.equal(quantized.z_q, states[-1].latent)
    for row, kept in enumerate((1, 3, 4)):
        assert torch.equal(quantized.prefix_z_q[row], states[kept].latent[row])
    weight = latent(seed=1)
    (quantized.prefix_z_q * weight).sum().backward()
    assert torch.equal(z.grad, weight)
    assert pyramid.log_gains.grad.abs().min() > 0


@pytest.mark.parametrize("mode", ["area", "bilinear"])
def test_inputs_of_the_next_scale_are_sampled_without_a_low_pass(mode: str) -> None:
    """By PyTorch's own interpolation, which as published does not smooth before it shrinks."""
    pyramid = make(next_inputs=mode)
    torch.manual_seed(0)
    size = pyramid.spec.codebook_sizes[0]
    tokens = TokenPyramid(torch.randint(size, (2, pyramid.spec.length, 1)), pyramid.spec)
    for state in pyramid.states(tokens):
        if state.next_inputs is None:
            continue
        side = pyramid.spec.scales[state.scale]
        options = {} if mode == "area" else {"align_corners": False, "antialias": False}
        expected = F.interpolate(state.latent, (side, side), mode=mode, **options)
        found = state.next_inputs.transpose(1, 2).unflatten(2, (side, side))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_losses_of_scales_weigh_as_much_as_they_have_tokens():
    """A quantizer's own losses: their mean over all tokens of the pyramid, by definition."""
    pyramid = make({"dim": 6, "codebook_size": 64}, kind="vq", gain="none", commitment_weight=0.0)
    z = latent(channels=6)
    seen = []
    handle = pyramid.quantizer.register_forward_hook(lambda _, z, out: seen.append(out))
    total = pyramid(z).loss
    handle.remove()
    counts = [1, 4, 9, 25]
    own = sum(
        count * pyramid.quantizer.total_loss(out.losses)
        for count, out in zip(counts, seen, strict=True)
    )
    target, fits = pyramid.normalize(z), []
    for state in list(pyramid.states(pyramid.encode(z)))[1:]:
        fits.append((state.latent - target).square().mean())
    expected = own / 39 + sum(fits) / 4
    assert float(total) == pytest.approx(float(expected), rel=1e-5)

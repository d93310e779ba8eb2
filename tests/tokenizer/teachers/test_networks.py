"""Teachers: each kind's features against the network called by hand, and what is refused."""

import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from lambda24.common.config import from_dict
from lambda24.common.metrics.perceptual import efficientnet_lite0
from lambda24.tokenizer.teachers.networks import (
    DINOv2Teacher,
    EfficientNetLite0Teacher,
    Teacher,
    TeacherConfig,
    TimmTeacher,
    build_teacher,
)

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}


def images(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1
    return F.interpolate(coarse, size=(size, size), mode="bilinear")


def save_timm(folder: Path, name: str, **options: int) -> tuple[torch.nn.Module, str]:
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, **options).eval()
    path = folder / f"{name}.safetensors"
    save_file(network.state_dict(), path)
    return network, str(path)


def assert_frozen(teacher: Teacher, x: Tensor) -> None:
    x.requires_grad_()
    assert not teacher(x).requires_grad
    assert not any(weight.requires_grad for weight in teacher.parameters())
    teacher.train()
    assert not any(part.training for part in teacher.modules())


@pytest.mark.parametrize(("stride", "channels", "index"), [(8, 40, 2), (16, 112, 3), (32, 320, 4)])
def test_efficientnet_stages(stride: int, channels: int, index: int) -> None:
    config = {"kind": "efficientnet_lite0", "size": 64, "stride": stride, "precision": "fp32"}
    teacher = build_teacher(from_dict(TeacherConfig, config))
    x = images(64)
    maps = efficientnet_lite0().forward_intermediates(x, intermediates_only=True)
    side = 64 // stride
    assert teacher.output_shape() == (channels, side, side)
    torch.testing.assert_close(teacher(x), maps[index], rtol=1e-3, atol=1e-3)
    assert_frozen(teacher, x)


def test_images_are_resized_to_the_teachers_size() -> None:
    config = EfficientNetLite0Teacher(size=64, stride=16, precision="fp32")
    teacher = build_teacher(config)
    x = images(96)
    small = F.interpolate(x, size=(64, 64), mode="bilinear", antialias=True)
    torch.testing.assert_close(teacher(x), teacher(small), rtol=1e-4, atol=1e-4)
    assert teacher(images(32)).shape == (2, 112, 4, 4)


def test_bf16_is_close_and_returns_float32() -> None:
    x = images(64)
    exact = build_teacher(EfficientNetLite0Teacher(size=64, precision="fp32"))(x)
    rounded = build_teacher(EfficientNetLite0Teacher(size=64, precision="bf16"))(x)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert F.cosine_similarity(rounded, exact).min() > 0.98


@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2_patch_tokens_in_their_places(tmp_path: Path, registers: int) -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, "image_size": 56, "patch_size": 14}
    if registers:
        config = Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
        network = Dinov2WithRegistersModel(config).eval()
    else:
        network = Dinov2Model(Dinov2Config(**sizes)).eval()
    network.save_pretrained(tmp_path)
    config = {"kind": "dinov2", "model": str(tmp_path), "size": 42, "precision": "fp32"}
    teacher = build_teacher(from_dict(TeacherConfig, config))
    x = images(42)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        tokens = network(pixel_values=((x + 1) / 2 - mean) / std).last_hidden_state
    assert tokens.shape == (2, 1 + registers + 9, 16)
    features = teacher(x)
    assert features.shape == (2, 16, 3, 3)
    for row in range(3):
        for column in range(3):
            token = tokens[:, 1 + registers + 3 * row + column]
            torch.testing.assert_close(features[:, :, row, column], token, rtol=1e-4, atol=1e-4)
    assert_frozen(teacher, x)


def test_dinov2_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {**SIZES, "image_size": 28, "patch_size": 14}
    network = Dinov2Model(Dinov2Config(**sizes))
    network.save_pretrained(tmp_path / "good")
    with pytest.raises(ValueError, match="patch size 14, got 50"):
        build_teacher(DINOv2Teacher(model=str(tmp_path / "good"), size=50))
    state = network.state_dict()
    del state["layernorm.weight"]
    network.save_pretrained(tmp_path / "torn", state_dict=state)
    with pytest.raises(ValueError, match=r"lacks 1 tensors: layernorm\.weight"):
        build_teacher(DINOv2Teacher(model=str(tmp_path / "torn"), size=28))
    vit = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    ViTModel(vit, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="'vit', not one of dinov2"):
        build_teacher(DINOv2Teacher(model=str(tmp_path / "vit"), size=32))
    with pytest.raises(ValueError, match="local folder"):
        build_teacher(DINOv2Teacher(model=str(tmp_path / "none")))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="pip install transformers"):
        build_teacher(DINOv2Teacher(model=str(tmp_path / "good")))


def test_timm_vit_tokens_after_the_last_norm(tmp_path: Path) -> None:
    network, path = save_timm(tmp_path, "test_vit")
    teacher = build_teacher(TimmTeacher(model="test_vit", weights_path=path, precision="fp32"))
    x = images(160)
    with torch.no_grad():
        tokens = network.forward_features((x / 2 + 0.5 - 0.5) / 0.5)  # its mean = std = 0.5
    features = teacher(x)
    assert features.shape == (2, 64, 10, 10)
    expected = tokens[:, network.num_prefix_tokens :].mT.reshape(2, 64, 10, 10)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)
    assert_frozen(teacher, x)


def test_timm_cnn_layer_and_normalisation(tmp_path: Path) -> None:
    network, path = save_timm(tmp_path, "test_efficientnet")
    config = TimmTeacher(
        model="test_efficientnet", weights_path=path, size=64, layer=1, precision="fp32"
    )
    x = images(64)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        maps = network.forward_intermediates(
            ((x + 1) / 2 - mean) / std, intermediates_only=True, indices=[1]
        )
    torch.testing.assert_close(build_teacher(config)(x), maps[0], rtol=1e-3, atol=1e-4)


def test_timm_size_and_backbone_file(tmp_path: Path) -> None:
    _, path = save_timm(tmp_path, "test_vit", num_classes=0)
    teacher = build_teacher(TimmTeacher(model="test_vit", weights_path=path, size=96))
    assert teacher.size == 96
    assert teacher(images(32)).shape == (2, 64, 6, 6)


def test_timm_mistakes_are_named(tmp_path: Path) -> None:
    _, path = save_timm(tmp_path, "test_efficientnet")
    with pytest.raises(ValueError, match=r"could not be loaded(.|\n)*Missing key"):
        build_teacher(TimmTeacher(model="test_vit", weights_path=path))
    with pytest.raises(ValueError, match="no file at nowhere"):
        build_teacher(TimmTeacher(model="test_vit", weights_path="nowhere"))
    with pytest.raises(ValueError, match="nonsense"):
        build_teacher(TimmTeacher(model="nonsense", weights_path=path))
    teacher = build_teacher(TimmTeacher(model="test_efficientnet", weights_path=path, layer=9))
    with pytest.raises(ValueError, match=r"layer 9.*0 to 4"):
        teacher.output_shape()
    with pytest.raises(ValueError, match="a model by name"):
        TimmTeacher(model="hf-hub:timm/test_vit", weights_path=path)


def test_building_leaves_the_random_state_alone(tmp_path: Path) -> None:
    _, path = save_timm(tmp_path, "test_vit")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_teacher(TimmTeacher(model="test_vit", weights_path=path))
    assert torch.equal(torch.rand(4), expected)


def test_weights_hash_tells_networks_apart() -> None:
    first = build_teacher(EfficientNetLite0Teacher(size=32))
    second = build_teacher(EfficientNetLite0Teacher(size=32))
    assert first.weights_hash() == second.weights_hash()
    with torch.no_grad():
        second.network[0].weight[0, 0, 0, 0] += 1e-3
    assert first.weights_hash() != second.weights_hash()


def test_images_of_other_shapes_are_refused() -> None:
    teacher = build_teacher(EfficientNetLite0Teacher(size=32))
    with pytest.raises(ValueError, match=r"\(2, 1, 32, 32\)"):
        teacher(torch.zeros(2, 1, 32, 32))


def test_files_of_half_precision_become_float32_teachers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**SIZES, image_size=28, patch_size=14)).half().save_pretrained(
        tmp_path
    )
    teacher = build_teacher(DINOv2Teacher(model=str(tmp_path), size=28, precision="fp32"))
    assert {value.dtype for value in teacher.network.state_dict().values()} == {torch.float32}
    assert teacher(images(28)).isfinite().all()

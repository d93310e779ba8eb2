"""What holds for every discriminator, at a small size."""

import shutil

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from lambda24.common.data.batches import Batch
from lambda24.common.optim.adamw import OptimizerConfig
from lambda24.tokenizer.adversary.adversary import (
    Adversary,
    AdversaryConfig,
    HingeConfig,
    NonSaturatingConfig,
)
from lambda24.tokenizer.adversary.diffaugment import DiffAugmentConfig
from lambda24.tokenizer.adversary.discriminators import (
    DinoConfig,
    PatchGANConfig,
    StyleGAN2Config,
    build_discriminator,
)

KINDS = ["patchgan_group", "patchgan_spectral", "patchgan_none", "stylegan2", "dinov2", "timm"]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Folders of tiny random vision transformers with patches of 8 pixels."""
    import timm
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes, image_size=16, patch_size=8, mlp_ratio=2)).save_pretrained(
        folder / "dinov2"
    )
    sizes = {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 8, "img_size": 16}
    model = timm.create_model("vit_tiny_patch16_224", **sizes)
    timm.models.save_for_hf(model, folder / "timm", model_args=sizes, safe_serialization=True)
    return folder


@pytest.fixture
def config_of(backbones):
    def config(kind):
        if kind.startswith("patchgan"):
            return PatchGANConfig(channels=8, num_layers=2, norm=kind.split("_")[1])
        if kind == "stylegan2":
            return StyleGAN2Config(channel_base=128, max_channels=16, group_size=2)
        options = {"blocks": (1, 3), "input_size": 24, "group_size": 2, "kernel_size": 3}
        if kind == "timm":
            return DinoConfig(library="timm", backbone=f"local-dir:{backbones / 'timm'}", **options)
        return DinoConfig(backbone=str(backbones / "dinov2"), **options)

    return config


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_pure_and_local_to_groups(kind, config_of, images):
    torch.manual_seed(1)
    discriminator = build_discriminator(config_of(kind), 32)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    logits = discriminator(images)
    assert logits.ndim == 2
    assert len(logits) == 4
    assert logits.dtype == torch.float32
    halves = torch.cat([discriminator(half) for half in images.chunk(2)])
    torch.testing.assert_close(halves, logits, atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert discriminator(images).dtype == torch.float32
    after = discriminator.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", [HingeConfig(), NonSaturatingConfig(r1_interval=10)])
def test_a_step_of_both_sides(kind, loss, config_of, images):
    torch.manual_seed(1)
    config = AdversaryConfig(
        discriminator=config_of(kind),
        loss=loss,
        optimizer=OptimizerConfig(lr=1e-3, betas=(0.5, 0.9), weight_decay=0.0),
        augment=DiffAugmentConfig(cutout=0.2),
    )
    adversary = Adversary(config, 32)
    adversary.prepare(Accelerator(cpu=True))
    batch = Batch(images, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    fakes = (images.flip(0) * 0.5).requires_grad_()
    adversary.generator_loss(batch, fakes).backward()
    assert fakes.grad.abs().sum(dim=(1, 2, 3)).min() > 0
    assert all(parameter.grad is None for parameter in adversary.discriminator.parameters())

    before = {name: p.detach().clone() for name, p in adversary.discriminator.named_parameters()}
    scalars = adversary.train_step([batch], [fakes.detach()], 0, 10)
    assert all(torch.isfinite(value) for value in scalars.values())
    assert scalars["d_gradient_norm"] > 0
    assert ("r1" in scalars) == isinstance(loss, NonSaturatingConfig)
    # An even split of two logistic or hinge halves may cancel in a last bias; nothing else.
    same = [n for n, p in adversary.discriminator.named_parameters() if torch.equal(p, before[n])]
    assert all("bias" in name for name in same), same
    first = scalars["d_loss"]
    for step in range(1, 10):
        scalars = adversary.train_step([batch], [fakes.detach()], step, 10)
    assert scalars["d_loss"] < first
    assert scalars["logits_real"] > scalars["logits_fake"]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_state_comes_back(kind, config_of, images):
    torch.manual_seed(1)
    first = build_discriminator(config_of(kind), 32)
    first.after_step()
    second = build_discriminator(config_of(kind), 32)
    assert not torch.equal(first(images), second(images))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images), second(images))


def test_the_frozen_backbone_is_hidden_but_moves(config_of):
    discriminator = build_discriminator(config_of("dinov2"), 32)
    names = [*discriminator.state_dict(), *dict(discriminator.named_parameters())]
    assert all(name.startswith("heads.") for name in names)
    backbone = discriminator._frozen[0]
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    discriminator.to("meta")
    assert next(backbone.parameters()).device.type == "meta"


def test_published_sizes():
    with torch.device("meta"):
        stylegan2 = build_discriminator(StyleGAN2Config(), 256)
        patchgan = build_discriminator(PatchGANConfig(), 256)
    counts = [sum(p.numel() for p in model.parameters()) for model in (stylegan2, patchgan)]
    assert counts[0] == 24_003_521  # "24.0M" of configuration E at 256 pixels, half the channels
    assert counts[1] == 2_765_633  # pix2pix's 2.77M


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        (PatchGANConfig(), 16, "3 layers need images of 24 pixels or more, got 16"),
        (StyleGAN2Config(), 48, "must be 8, 16, 32, ..., got 48"),
    ],
)
def test_sizes_that_do_not_fit(config, size, message):
    with pytest.raises(ValueError, match=message):
        build_discriminator(config, size)


def test_backbones_that_do_not_fit(backbones):
    folder = str(backbones / "dinov2")
    with pytest.raises(ValueError, match="has 3 blocks, got blocks"):
        build_discriminator(DinoConfig(backbone=folder, input_size=16), 32)
    with pytest.raises(ValueError, match=r"multiple of .*patch size 8, got 20"):
        build_discriminator(DinoConfig(backbone=folder, input_size=20, blocks=(1,)), 32)
    with pytest.raises(ValueError, match=r"discriminator\.backbone .*nowhere"):
        build_discriminator(DinoConfig(backbone=str(backbones / "nowhere")), 32)
    with pytest.raises(ValueError, match=r"discriminator\.backbone 'resnet18' could not be loaded"):
        build_discriminator(DinoConfig(library="timm", backbone="resnet18"), 32)


def test_backbones_without_all_their_weights_are_refused(backbones, tmp_path):
    """Both libraries would fill in random numbers."""
    options = {"blocks": (1,), "input_size": 16}
    for library, lost in (("dinov2", "layernorm.weight"), ("timm", "blocks.1.norm1.weight")):
        torn = shutil.copytree(backbones / library, tmp_path / library)
        state = load_file(torn / "model.safetensors")
        del state[lost]
        (torn / "pytorch_model.bin").unlink(missing_ok=True)
        save_file(state, torn / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"discriminator\.backbone .* lacks 1 tensors: layernorm"):
        build_discriminator(DinoConfig(backbone=str(tmp_path / "dinov2"), **options), 32)
    timm_config = DinoConfig(library="timm", backbone=f"local-dir:{tmp_path / 'timm'}", **options)
    with pytest.raises(ValueError, match=r"(?s)discriminator\.backbone .*blocks\.1\.norm1\.weight"):
        build_discriminator(timm_config, 32)


def test_a_backbone_may_lack_its_pooler(tmp_path):
    """DINO's files do; features do not pass through it."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit = ViTConfig(**sizes, intermediate_size=16, image_size=16, patch_size=8)
    ViTModel(vit, add_pooling_layer=False).save_pretrained(tmp_path)
    config = DinoConfig(backbone=str(tmp_path), blocks=(1,), input_size=16, group_size=2)
    assert build_discriminator(config, 32)(torch.zeros(2, 3, 32, 32)).shape == (2, 4)


def test_a_backbone_of_half_precision_is_read_as_float32(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit = ViTConfig(**sizes, intermediate_size=16, image_size=16, patch_size=8)
    ViTModel(vit, add_pooling_layer=False).half().save_pretrained(tmp_path)
    config = DinoConfig(backbone=str(tmp_path), blocks=(1,), input_size=16, group_size=2)
    logits = build_discriminator(config, 32)(torch.rand(2, 3, 32, 32))
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()

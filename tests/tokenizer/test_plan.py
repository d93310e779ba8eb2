"""The plan of a dry run, and the numbers of the large recipes, none of which is trained here."""

from dataclasses import replace
from pathlib import Path

import pytest

from lambda24.common.config import load_config
from lambda24.scripts import train_tokenizer
from lambda24.tokenizer import plan
from lambda24.tokenizer.autoencoders.build import preset
from lambda24.tokenizer.autoencoders.cnn import CNNConfig
from lambda24.tokenizer.autoencoders.vit import ViTConfig
from lambda24.tokenizer.plan import activation_bytes
from lambda24.tokenizer.settings import TokenizerTrainingConfig

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = {
    # Name: preset, parameters of encoder, decoder and discriminator, tokens, bits.
    "imagenet256_leech_var": ("cnn-base", 44_988_824, 65_055_491, None, "521", "9,162"),
    "imagenet256_leech_var_vf": ("cnn-base", 44_988_824, 65_055_491, None, "521", "9,162"),
    "imagenet256_leech_vit": ("vit-base", 86_009_880, 88_815_552, 24_003_521, "1,024", "18,007"),
    "imagenet256_bsq18_vit": ("vit-base", 86_005_266, 88_810_944, 28_866_945, "1,024", "18,432"),
}
OTHERS = {
    # Name: tokens, bits: of recipes whose networks are not the published ones, but for VAR's.
    "imagenet256_gsq_gan_f16": ("256", "9,216"),
    "imagenet256_lgq_vqgan": ("256", "3,584"),
    "imagenet256_vq_var": ("680", "8,160"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_published_sizes_and_rates(name, monkeypatch):
    monkeypatch.setattr(plan, "activation_bytes", lambda *_, bf16: 0)  # seconds each; tested below
    shape, encoder, decoder, discriminator, tokens, bits = RECIPES[name]
    config = load_config(TokenizerTrainingConfig, CONFIGS / "tokenizer" / f"{name}.yaml")
    assert config.model.autoencoder == preset(shape)
    assert config.run == f"runs/{name}"
    lines = plan.describe(config).splitlines()
    assert f"encoder: {encoder:,} parameters" in lines
    assert f"decoder: {decoder:,} parameters" in lines
    counted = [line for line in lines if line.startswith("discriminator")]
    assert counted == ([f"discriminator: {discriminator:,} parameters"] if discriminator else [])
    assert any(f": {tokens} tokens of " in line for line in lines)
    assert any(line.startswith(f"{bits} bits per image, ") for line in lines)


@pytest.mark.parametrize("name", OTHERS)
def test_other_recipes_have_the_published_rates(name, monkeypatch):
    monkeypatch.setattr(plan, "activation_bytes", lambda *_, bf16: 0)
    tokens, bits = OTHERS[name]
    config = load_config(TokenizerTrainingConfig, CONFIGS / "tokenizer" / f"{name}.yaml")
    if name == "imagenet256_vq_var":
        assert config.model.autoencoder == preset("cnn-var")
    assert config.run == f"runs/{name}"
    text = plan.describe(config)
    assert f": {tokens} tokens of " in text
    images = config.loop.batch_size // config.loop.accumulation
    assert f"counts {images} images per process, assuming one process" in text
    assert f"\n{bits} bits per image, " in text


def test_a_dry_run_needs_neither_data_nor_downloads(capsys, tmp_path):
    path = CONFIGS / "tokenizer" / "imagenet256_leech_var_vf.yaml"
    overrides = [f"data.path={tmp_path / 'absent'}", f"run={tmp_path / 'run'}"]
    assert train_tokenizer.main([str(path), *overrides, "--dry-run"]) == {}
    assert "500,000 steps of 256 images, 128,000,000 in all" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_activations_of_a_small_network_by_hand():
    """One level, one block each: what autograd must keep, image 4x4, widths 4, latent 8."""
    network = CNNConfig(channels=(4,), encoder_blocks=1, decoder_blocks=1, groups=2)
    config = load_config(TokenizerTrainingConfig, CONFIGS / "debug" / "tokenizer.yaml").model
    config = replace(
        config, image_size=4, autoencoder=network, pyramid=replace(config.pyramid, scales=(4,))
    )
    maps = 4 * 4 * 4  # numbers of a (4, 4, 4) map
    # Of a block: its input, normalised input, activation, first convolution, the same again.
    block = 6 * maps + 2 * (2 + 2)  # and mean and deviation of two groups, twice
    tail = 3 * maps + 2 + 2  # norm's input, silu's input, convolution's input
    image, latent = 3 * 4 * 4, 8 * 4 * 4
    expected = image + latent + 2 * (block + tail)
    assert activation_bytes(config, 8, bf16=False) == 4 * expected


@pytest.mark.parametrize(
    "network",
    [
        CNNConfig(channels=(8, 16), encoder_blocks=1, decoder_blocks=1, groups=4, layout="ldm"),
        ViTConfig(patch_size=2, width=32, num_heads=2, encoder_blocks=1, decoder_blocks=1),
    ],
    ids=["cnn", "vit"],
)
def test_activations_follow_pixels_precision_and_checkpointing(network):
    config = load_config(TokenizerTrainingConfig, CONFIGS / "debug" / "tokenizer.yaml").model

    def measure(side, checkpointed=False, bf16=False):
        pyramid = replace(config.pyramid, scales=(side,))
        shape = replace(network, checkpoint_activations=checkpointed)
        size = side * network.stride
        whole = replace(config, image_size=size, autoencoder=shape, pyramid=pyramid)
        return activation_bytes(whole, 24, bf16=bf16)

    usual = measure(8)
    assert measure(16) == pytest.approx(4 * usual, rel=0.01)
    assert measure(8, bf16=True) < 0.65 * usual
    assert measure(8, checkpointed=True) < 0.6 * usual

"""Building autoencoders by kind, activation checkpointing, and the named shapes."""

from dataclasses import replace

import pytest
import torch

from lambda24.common.config import from_dict, to_dict
from lambda24.tokenizer import ImageTokenizer, TokenizerConfig
from lambda24.tokenizer.autoencoders.build import PRESETS, build_autoencoder, preset
from lambda24.tokenizer.autoencoders.cnn import CNNConfig
from lambda24.tokenizer.autoencoders.recompute import run_layers
from lambda24.tokenizer.autoencoders.vit import ViTConfig, ViTEncoder
from lambda24.tokenizer.pyramid.multiscale import PyramidConfig

CONFIGS = {
    "cnn": CNNConfig(channels=(8, 16), groups=4, layout="ldm", attention="lowest"),
    "vit": ViTConfig(patch_size=2, width=16, num_heads=2, encoder_blocks=2, decoder_blocks=2),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_checkpointed_activations_change_no_value_and_no_gradient(kind):
    images = torch.rand(2, 3, 8, 8)
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        config = replace(CONFIGS[kind], checkpoint_activations=checkpointed)
        halves = torch.nn.Sequential(*build_autoencoder(config, 24, 8))
        saved = 0

        def count(tensor):
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            output = halves(images)
        output.square().mean().backward()
        gradients = {name: parameter.grad for name, parameter in halves.named_parameters()}
        results.append((output, gradients, saved))
    (plain, gradients, much), (checkpointed, recomputed, little) = results
    assert torch.equal(plain, checkpointed)
    assert gradients.keys() == recomputed.keys()
    assert all(torch.equal(gradients[name], recomputed[name]) for name in gradients)
    assert little < 0.6 * much


def test_without_gradients_nothing_is_recomputed():
    calls = []

    class Counted(torch.nn.Linear):
        def forward(self, x):
            calls.append(torch.is_grad_enabled())
            return super().forward(x)

    layer = Counted(2, 2)
    run_layers([layer], torch.ones(1, 2), (Counted,)).sum().backward()
    assert len(calls) == 2  # once forward, once for the gradient
    with torch.no_grad():
        run_layers([layer], torch.ones(1, 2), (Counted,))
    assert len(calls) == 3


@pytest.mark.parametrize("name", PRESETS)
def test_presets_autoencode(name):
    config = preset(name)
    with torch.device("meta"):
        encoder, decoder = build_autoencoder(config, 24, 64)
        latent = encoder(torch.empty(1, 3, 64, 96))
        assert latent.shape == (1, 24, 64 // config.stride, 96 // config.stride)
        assert decoder(latent).shape == (1, 3, 64, 96)
    small = sum(p.numel() for half in (encoder, decoder) for p in half.parameters()) < 10e6
    assert small == name.endswith("-mini")


def test_folders_from_before_there_were_kinds_hold_a_cnn():
    config = TokenizerConfig(image_size=16, pyramid=PyramidConfig(scales=(8,)))
    data = to_dict(config)
    assert data["autoencoder"].pop("kind") == "cnn"
    assert from_dict(TokenizerConfig, data) == config


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="no preset 'cnn-huge', known: cnn-base"):
        preset("cnn-huge")


def test_a_vit_tokenizer_of_one_scale_comes_back_from_its_folder(tmp_path):
    config = from_dict(
        TokenizerConfig,
        {
            "image_size": 16,
            "pyramid": {"scales": [8], "radius": None, "gain": "none"},
            "autoencoder": to_dict(CONFIGS["vit"]),
            "quantizer": {"kind": "leech", "normalize": True},
        },
    )
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(config).eval()
    assert isinstance(tokenizer.encoder, ViTEncoder)
    tokenizer.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 16, 16)
    loaded = ImageTokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(images).indices, tokenizer.encode(images).indices)
    output = tokenizer(images)
    output.images.square().mean().backward()
    assert tokenizer.encoder.last_weight.grad.abs().sum() > 0


def test_kinds_are_checked_and_sides_must_fit():
    rest = {"image_size": 16, "pyramid": {"scales": [8]}}
    with pytest.raises(ValueError, match=r"autoencoder\.kind: got 'mlp' .*'cnn', 'vit'"):
        from_dict(TokenizerConfig, {**rest, "autoencoder": {"kind": "mlp"}})
    with pytest.raises(ValueError, match=r"image_size 20 must be divisible by .* stride 8"):
        build_autoencoder(ViTConfig(), 24, 20)

"""The convolutional autoencoder: published sizes, weights' names, layouts, attention, options."""

import copy

import pytest
import torch

from lambda24.tokenizer.autoencoders.build import preset
from lambda24.tokenizer.autoencoders.cnn import (
    CNNConfig,
    CNNDecoder,
    CNNEncoder,
    Downsample,
    SpatialAttention,
)

PLAIN = CNNConfig(channels=(8, 16), encoder_blocks=1, decoder_blocks=1, groups=4)
LDM = CNNConfig(channels=(8, 16), groups=4, layout="ldm", attention="mid")


def build(config, seed=0, latent_channels=24):
    torch.manual_seed(seed)
    return CNNEncoder(config, latent_channels), CNNDecoder(config, latent_channels)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "latent_channels", "counts", "published"),
    [
        ("cnn-base", 24, (44_988_824, 65_055_491), (45.0, 65.1)),  # Λ24-SQ's VAR tokenizer
        ("cnn-var", 32, (44_107_872, 64_653_923), (44.1, 64.7)),  # VAR's
    ],
)
def test_published_sizes(name, latent_channels, counts, published):
    with torch.device("meta"):
        halves = build(preset(name), latent_channels=latent_channels)
    assert tuple(map(count, halves)) == counts
    # Published to a tenth of a million.
    assert [half / 1e6 for half in counts] == pytest.approx(published, abs=0.05)


def test_the_plain_layout_keeps_the_names_of_trained_weights():
    """Released and running tokenizers: keys and shapes are part of their format."""
    encoder, decoder = build(PLAIN)

    def block(index):
        layers = ("norm1", "conv1", "norm2", "conv2")
        return [f"{index}.{layer}.{part}" for layer in layers for part in ("weight", "bias")]

    def plain(*names):
        return [f"{name}.{part}" for name in names for part in ("weight", "bias")]

    assert list(encoder.state_dict()) == [
        *plain("1"), *block(2), *plain("3"), *block(4), *plain("5", "7")
    ]  # fmt: skip
    assert list(decoder.state_dict()) == [
        *plain("0"), *block(1), *plain("2.conv"), *block(3), *plain("4", "6")
    ]  # fmt: skip
    assert encoder.state_dict()["3.weight"].shape == (16, 8, 4, 4)
    assert decoder.state_dict()["2.conv.weight"].shape == (8, 16, 3, 3)


@pytest.mark.parametrize(
    "config", [PLAIN, LDM, CNNConfig(channels=(8, 16), patch_size=4, groups=4, layout="ldm")]
)
def test_any_size_that_the_stride_divides(config):
    encoder, decoder = build(config)
    for height, width in ((16, 16), (48, 32)):
        latent = encoder(torch.rand(2, 3, height, width))
        assert latent.shape == (2, 24, height // config.stride, width // config.stride)
        assert decoder(latent).shape == (2, 3, height, width)


def test_downsampling_pads_at_the_right_and_the_bottom():
    down = Downsample(1)
    torch.nn.init.zeros_(down.conv.weight)
    torch.nn.init.zeros_(down.conv.bias)
    with torch.no_grad():
        down.conv.weight[0, 0, 0, 0] = 1.0  # picks the top left of each window
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert down(x).flatten().tolist() == [0.0, 2.0, 8.0, 10.0]


def test_attention_mixes_all_positions_by_the_definition():
    torch.manual_seed(0)
    layer = SpatialAttention(8, groups=4)
    x = torch.randn(2, 8, 3, 5)
    tokens = layer.norm(x).flatten(2).transpose(1, 2)
    query, key, value = (
        tokens @ layer.qkv.weight[8 * i : 8 * i + 8, :, 0, 0].T + layer.qkv.bias[8 * i : 8 * i + 8]
        for i in range(3)
    )
    mixed = torch.softmax(query @ key.transpose(1, 2) / 8**0.5, dim=-1) @ value
    expected = mixed @ layer.projection.weight[:, :, 0, 0].T + layer.projection.bias
    expected = x + expected.transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_where_attention_goes():
    def attentions(attention):
        config = CNNConfig(channels=(8, 16), groups=4, layout="ldm", attention=attention)
        return [sum(isinstance(m, SpatialAttention) for m in half) for half in build(config)]

    # Encoder and decoder have 2 and 3 blocks a level.
    assert attentions("none") == [0, 0]
    assert attentions("mid") == [1, 1]
    assert attentions("lowest") == [3, 4]


@pytest.mark.parametrize("config", [PLAIN, LDM])
def test_last_weight_makes_the_output(config):
    for half, x in zip(
        build(config), (torch.rand(1, 3, 8, 8), torch.rand(1, 24, 4, 4)), strict=True
    ):
        before = half(x)
        with torch.no_grad():
            half.last_weight.zero_()
        after = half(x)
        assert not torch.allclose(before, after)
        assert torch.equal(after.amax((2, 3)), after.amin((2, 3)))  # nothing but the bias is left


def test_compiled_halves_agree_and_copies_run_eagerly():
    encoder, _ = build(PLAIN)
    images = torch.rand(1, 3, 16, 16)
    names, before = list(encoder.state_dict()), encoder(images)
    calls = []
    encoder.compile(backend=lambda graph, _: calls.append(graph) or graph.forward, fullgraph=True)
    torch.testing.assert_close(encoder(images), before)
    assert len(calls) == 1
    assert list(encoder.state_dict()) == names
    assert torch.equal(copy.deepcopy(encoder)(images), before)
    assert len(calls) == 1


def test_channels_last_and_bf16_autocast_give_the_same_image():
    encoder, decoder = build(LDM)
    images = torch.rand(2, 3, 16, 16)
    latent = encoder(images)
    wide = [half.to(memory_format=torch.channels_last) for half in (encoder, decoder)]
    torch.testing.assert_close(
        wide[0](images.contiguous(memory_format=torch.channels_last)), latent
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = wide[1](latent)
    assert (low.float() - decoder(latent)).abs().max() < 0.05


def test_refuses_impossible_sizes():
    with pytest.raises(ValueError, match="channels 24 must be divisible by groups 32"):
        CNNConfig(channels=(24,))
    with pytest.raises(ValueError, match="attention 'mid' needs layout 'ldm', not 'plain'"):
        CNNConfig(attention="mid")

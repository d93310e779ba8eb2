"""ImageTokenizer: shapes, round trips through tokens and folders, and errors."""

import pytest
import torch
from PIL import Image

from lambda24.common.config import from_dict
from lambda24.common.images import from_uint8, to_uint8
from lambda24.tokenizer import ImageTokenizer, TokenizerConfig, TokenPyramid

CONFIG = {
    "image_size": 16,
    "pyramid": {"scales": [1, 2, 4]},
    "autoencoder": {
        "kind": "cnn",
        "channels": [8, 16],
        "patch_size": 2,
        "encoder_blocks": 1,
        "decoder_blocks": 1,
        "groups": 4,
    },
}


@pytest.fixture
def image_tokenizer():
    torch.manual_seed(0)
    return ImageTokenizer(from_dict(TokenizerConfig, CONFIG)).eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_training_pass_equals_encode_then_decode(image_tokenizer, images):
    output = image_tokenizer(images)
    tokens = image_tokenizer.encode(images)
    assert torch.equal(output.tokens.indices, tokens.indices)
    decoded = image_tokenizer.decode(tokens)
    assert torch.allclose(output.images.clamp(-1, 1), decoded, atol=1e-6)
    assert decoded.shape == images.shape


def test_a_prefix_decodes_beside_the_whole_image(image_tokenizer, images):
    calls = []
    image_tokenizer.decoder.register_forward_hook(lambda *_: calls.append(1))
    plain = image_tokenizer(images)
    assert plain.prefix_images is None
    assert len(calls) == 1
    output = image_tokenizer(images, prefix=torch.tensor([1, 2, 3]))
    prefixes = image_tokenizer.decode_prefixes(output.tokens)
    for row in range(3):
        expected = prefixes[row][row]
        assert torch.allclose(output.prefix_images[row].clamp(-1, 1), expected, atol=1e-5)
    assert torch.allclose(output.images, plain.images, atol=1e-5)
    assert (output.prefix_images[0] - output.images[0]).abs().max() > 1e-3


def test_a_prefix_trains_through_the_same_straight_path(image_tokenizer, images):
    output = image_tokenizer(images, prefix=torch.tensor([1, 2, 3]))
    gradient = torch.autograd.grad(output.prefix_images.square().sum(), output.latent)[0]
    assert (gradient.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_every_trained_parameter_gets_a_gradient(image_tokenizer, images):
    output = image_tokenizer.train()(images)
    ((output.images - images).abs().mean() + output.quantizer_loss).backward()
    silent = [
        name
        for name, parameter in image_tokenizer.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert silent == []


def test_next_scale_inputs_are_those_of_stepwise_decoding(image_tokenizer, images):
    tokens = image_tokenizer.encode(images)
    inputs = image_tokenizer.next_scale_inputs(tokens)
    assert inputs.shape == (3, 21, 24)
    assert inputs[:, 0].abs().sum() == 0
    state = image_tokenizer.initial_state(3)
    for k in range(3):
        assert torch.equal(state.next_inputs, inputs[:, tokens.spec.scale_slice(k)])
        state = image_tokenizer.accumulate(state, tokens.scale(k))
    assert state.next_inputs is None
    assert torch.equal(image_tokenizer.decode_latent(state.latent), image_tokenizer.decode(tokens))


def test_the_last_prefix_is_the_image(image_tokenizer, images):
    tokens = image_tokenizer.encode(images)
    prefixes = image_tokenizer.decode_prefixes(tokens)
    assert len(prefixes) == 3
    assert torch.equal(prefixes[-1], image_tokenizer.decode(tokens))


def test_a_saved_model_gives_the_same_tokens_and_images(image_tokenizer, images, tmp_path):
    image_tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = ImageTokenizer.from_pretrained(tmp_path)  # the folder above works too
    tokens = image_tokenizer.encode(images)
    assert torch.equal(loaded.encode(images).indices, tokens.indices)
    assert torch.equal(loaded.decode(tokens), image_tokenizer.decode(tokens))


def test_a_truncated_weight_file_is_named(image_tokenizer, tmp_path):
    image_tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        ImageTokenizer.from_pretrained(tmp_path)


def test_refuses_other_images_tokens_and_sizes(image_tokenizer, images):
    with pytest.raises(ValueError, match=r"\(B, 3, 16, 16\) .*, got \(3, 3, 12, 16\)"):
        image_tokenizer.encode(images[:, :, :12])
    other = from_dict(TokenizerConfig, {**CONFIG, "image_size": 12, "pyramid": {"scales": [1, 3]}})
    tokens = ImageTokenizer(other).eval().encode(images[:, :, :12, :12])
    with pytest.raises(ValueError, match="this tokenizer has spec"):
        image_tokenizer.decode(tokens)
    assert isinstance(tokens, TokenPyramid)
    with pytest.raises(ValueError, match="last scale 4 x stride 4 = 16, got 20"):
        from_dict(TokenizerConfig, {**CONFIG, "image_size": 20})


def test_pil_images_are_the_tensors_they_show(image_tokenizer, images):
    pixels = to_uint8(images)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    tokens = image_tokenizer.encode_pil(pictures)
    assert torch.equal(tokens.indices, image_tokenizer.encode(from_uint8(pixels)).indices)
    one = image_tokenizer.encode_pil(pictures[1])
    assert torch.equal(one.indices, tokens.indices[1:2])
    decoded = image_tokenizer.decode_pil(tokens)
    expected = to_uint8(image_tokenizer.decode(tokens))
    assert len(decoded) == 3
    assert decoded[2].tobytes() == expected[2].permute(1, 2, 0).contiguous().numpy().tobytes()
    with pytest.raises(ValueError, match=r"16 x 16 pixels .*, got 12 x 16"):
        image_tokenizer.encode_pil([pictures[0], Image.new("RGB", (12, 16))])
    with pytest.raises(ValueError, match=r"16 x 16 pixels .*, got none"):
        image_tokenizer.encode_pil([])


def test_refuses_what_is_no_batch_of_floats(image_tokenizer, images):
    wanted = r"images must be \(B, 3, 16, 16\) floats in \[-1, 1\], got "
    with pytest.raises(ValueError, match=wanted + r"torch.uint8: pixels / 127.5 - 1"):
        image_tokenizer.encode(to_uint8(images))
    with pytest.raises(ValueError, match=wanted + "Image: encode_pil"):
        image_tokenizer.encode(Image.new("RGB", (16, 16)))
    with pytest.raises(ValueError, match=wanted + r"\(3, 16, 16\)"):
        image_tokenizer.encode(images[0])


def test_the_repr_of_tokens_is_a_line_without_indices(image_tokenizer, images):
    assert repr(image_tokenizer.encode(images)) == (
        "TokenPyramid(3 images, 21 tokens on scales (1, 2, 4), codebooks (196560,), cpu)"
    )

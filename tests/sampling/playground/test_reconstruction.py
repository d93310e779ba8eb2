"""What the tokenizer makes of one image."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from lambda24.common.images import from_pil, from_uint8, to_pil
from lambda24.sampling.playground.reconstruction import reconstruct, tokens_text
from lambda24.tokenizer.tokens import TokenPyramid, TokenSpec
from tests.sampling.tiny_pipeline import tiny_pipeline


def test_prefixes_bits_and_psnr():
    image_tokenizer = tiny_pipeline().image_tokenizer
    image = Image.effect_noise((16, 16), 90).convert("RGB")
    result = reconstruct(image_tokenizer, image)
    assert [prefix.tokens for prefix in result.prefixes] == [1, 5, 21]
    assert [prefix.side for prefix in result.prefixes] == [1, 2, 4]
    last = result.prefixes[-1]
    assert last.bits == pytest.approx(21 * math.log2(75))
    tokens = image_tokenizer.encode(from_uint8(from_pil([image])))
    assert last.image.tobytes() == to_pil(image_tokenizer.decode(tokens))[0].tobytes()
    error = np.asarray(last.image, float) - np.asarray(image, float)
    assert last.psnr == pytest.approx(10 * math.log10(255**2 / (error**2).mean()))
    with pytest.raises(ValueError, match="16, 16"):
        reconstruct(image_tokenizer, image.resize((8, 8)))


def test_indices_are_written_as_grids():
    spec = TokenSpec(scales=(1, 2), codebook_sizes=(10, 10), code_dim=2, latent_size=2)
    indices = torch.tensor([[[1, 2], [3, 4], [5, 6], [7, 8], [9, 0]]])
    text = tokens_text(TokenPyramid(indices, spec))
    assert text == "scale 1, 1 x 1:\n1/2\n\nscale 2, 2 x 2:\n3/4 5/6\n7/8 9/0"

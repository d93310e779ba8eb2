import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lambda24.common.images import GUTTER, from_uint8, to_uint8
from lambda24.common.metrics.extractors import EfficientNetLite0Features
from lambda24.common.metrics.pairs import psnr, ssim
from lambda24.common.metrics.perceptual import EfficientNetLite0Perceptual, LPIPSPerceptual
from lambda24.common.metrics.reference import TensorImages
from lambda24.tokenizer.autoencoders.cnn import CNNConfig
from lambda24.tokenizer.evaluation import evaluate_tokenizer, prefix_pictures, scale_report
from lambda24.tokenizer.meter import TokenizerEvaluationConfig
from lambda24.tokenizer.model import ImageTokenizer, TokenizerConfig
from lambda24.tokenizer.pyramid.multiscale import PyramidConfig
from lambda24.tokenizer.quantizers import build_quantizer
from lambda24.tokenizer.tokens import TokenPyramid, TokenSpec

FAST = EfficientNetLite0Features(size=32)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def image_tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    config = TokenizerConfig(
        image_size=16,
        pyramid=PyramidConfig(scales=(1, 2, 4)),
        autoencoder=CNNConfig(channels=(8, 8), patch_size=2, encoder_blocks=1, groups=4),
    )
    return ImageTokenizer(config)


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (20, 3, 16, 16), generator=generator, dtype=torch.uint8)


def test_pixel_metrics_are_those_of_encode_and_decode(
    image_tokenizer: ImageTokenizer, images: Tensor
) -> None:
    image_tokenizer.train()
    config = TokenizerEvaluationConfig(extractor=None, batch_size=7)
    result = evaluate_tokenizer(image_tokenizer, TensorImages(images), config)
    assert image_tokenizer.training
    image_tokenizer.eval()
    tokens = image_tokenizer.encode(from_uint8(images))
    decoded = to_uint8(image_tokenizer.decode(tokens))
    assert result.psnr == pytest.approx(psnr(decoded, images).mean().item(), rel=1e-4)
    assert result.ssim == pytest.approx(ssim(decoded, images).mean().item(), rel=1e-3, abs=1e-4)
    first = to_uint8(image_tokenizer.decode_prefixes(tokens)[0])
    expected = psnr(first, images).mean().item()
    assert result.scales[0].prefix_psnr == pytest.approx(expected, rel=1e-4)
    assert result.scales[-1].prefix_psnr == result.psnr
    assert result.rfid is None
    assert result.perceptual is None


def test_rates_follow_from_the_spec(image_tokenizer: ImageTokenizer, images: Tensor) -> None:
    config = TokenizerEvaluationConfig(extractor=None)
    result = evaluate_tokenizer(image_tokenizer, TensorImages(images), config)
    assert result.bits_per_image == pytest.approx(21 * math.log2(196_560))
    assert result.bits_per_pixel == pytest.approx(result.bits_per_image / 256)
    assert [scale.side for scale in result.scales] == [1, 2, 4]
    assert [scale.num_tokens for scale in result.scales] == [20, 80, 320]
    total = sum(s.entropy_bits * s.side**2 for s in result.scales)
    assert result.entropy_bits_per_image == pytest.approx(total)
    used = [scale.codes_used for scale in result.scales]
    assert max(used) <= result.codebook_usage * 196_560 + 1e-6 <= sum(used)


def test_rfid_protocol_and_file(
    image_tokenizer: ImageTokenizer, images: Tensor, tmp_path: Path
) -> None:
    config = TokenizerEvaluationConfig(
        extractor=FAST, perceptual=EfficientNetLite0Perceptual(min_size=None), num_images=10
    )
    result = evaluate_tokenizer(image_tokenizer, TensorImages(images), config)
    assert result.rfid is not None
    assert result.rfid > 0
    assert result.perceptual is not None
    assert result.perceptual > 0
    assert result.protocol["num_images"] == 10
    assert result.protocol["num_available"] == 20
    assert result.protocol["extractor"]["name"] == "efficientnet-lite0"
    assert "rank" in result.protocol["warning"]
    result.save(tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text())["rfid"] == result.rfid


def test_perfect_reconstruction_scores_perfectly(
    image_tokenizer: ImageTokenizer, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    position = iter(range(0, 20, 5))

    def perfect(tokens: TokenPyramid) -> list[Tensor]:
        start = next(position)
        return [from_uint8(images[start : start + 5])] * 3

    monkeypatch.setattr(image_tokenizer, "decode_prefixes", perfect)
    config = TokenizerEvaluationConfig(
        extractor=FAST, perceptual=EfficientNetLite0Perceptual(), batch_size=5
    )
    result = evaluate_tokenizer(image_tokenizer, TensorImages(images), config)
    assert result.psnr == 100
    assert result.ssim == pytest.approx(1)
    assert result.perceptual == 0
    assert result.rfid == pytest.approx(0, abs=1e-4)


def test_usage_and_entropy_of_known_tokens() -> None:
    spec = TokenSpec(scales=(1, 2), codebook_sizes=(4, 8), code_dim=2, latent_size=2)
    first = torch.tensor([[[0, 5]], [[0, 5]]])
    second = torch.tensor([[[0, 1], [1, 1], [2, 1], [3, 1]], [[0, 2], [1, 2], [2, 2], [3, 2]]])
    tokens = TokenPyramid.from_scales([first, second], spec)
    coarse = scale_report(tokens, 0, prefix_psnr=10.0)
    assert (coarse.codes_used, coarse.entropy_bits) == (2, 0)
    fine = scale_report(tokens, 1, prefix_psnr=12.0)
    assert fine.codes_used == 4 + 2
    assert fine.usage == pytest.approx(6 / 12)
    assert fine.entropy_bits == pytest.approx(2 + 1)
    assert fine.num_tokens == 8


@pytest.mark.parametrize("count", [21, 1000])
def test_more_images_than_there_are(
    image_tokenizer: ImageTokenizer, images: Tensor, count: int
) -> None:
    config = TokenizerEvaluationConfig(extractor=None, num_images=count)
    with pytest.raises(ValueError, match=rf"\[2, 20\], .* got {count}"):
        evaluate_tokenizer(image_tokenizer, TensorImages(images), config)


def test_several_codebooks_evaluate_too(images: Tensor) -> None:
    quantizer = {"kind": "bsq", "num_bits": 8, "num_codebooks": 2}
    assert build_quantizer(quantizer).codebook_sizes == (16, 16)
    torch.manual_seed(0)
    model = ImageTokenizer.from_config_dict(
        {
            "image_size": 16,
            "pyramid": {"scales": [1, 4]},
            "autoencoder": {
                "kind": "cnn",
                "channels": [8, 8],
                "patch_size": 2,
                "encoder_blocks": 1,
                "groups": 4,
            },
            "quantizer": quantizer,
        }
    )
    config = TokenizerEvaluationConfig(extractor=None)
    result = evaluate_tokenizer(model, TensorImages(images), config)
    assert result.bits_per_image == pytest.approx(17 * 8)
    assert 0 < result.codebook_usage <= 1
    assert all(scale.entropy_bits <= 8 + 1e-9 for scale in result.scales)


def test_markdown_has_the_row_and_every_scale(
    image_tokenizer: ImageTokenizer, images: Tensor
) -> None:
    config = TokenizerEvaluationConfig(extractor=None)
    result = evaluate_tokenizer(image_tokenizer, TensorImages(images), config)
    first, second = result.markdown("ours").split("\n\n")
    header, rule, row = first.splitlines()
    assert header.count("|") == rule.count("|") == row.count("|")
    assert row.startswith(f"| ours | {result.psnr:.2f} | {result.ssim:.4f} | - | - | - | - |")
    assert row.endswith("| 20 |")
    assert [line.split(" | ")[0] for line in second.splitlines()[2:]] == [
        "| 1 x 1",
        "| 2 x 2",
        "| 4 x 4",
    ]


def test_small_images_have_no_ms_ssim_and_the_result_says_why(
    image_tokenizer: ImageTokenizer, images: Tensor
) -> None:
    config = TokenizerEvaluationConfig(extractor=None, ms_ssim=True)
    result = evaluate_tokenizer(image_tokenizer, TensorImages(images), config)
    assert result.ms_ssim is None
    assert "need 161 pixels, images have 16" in result.protocol["ms_ssim_missing"]


def test_a_missing_package_is_an_error_before_any_work(
    image_tokenizer: ImageTokenizer, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_tokenizer, "encode", None)
    for name, config in {
        "pytorch_msssim": TokenizerEvaluationConfig(extractor=None, ms_ssim=True),
        "lpips": TokenizerEvaluationConfig(extractor=None, lpips=LPIPSPerceptual()),
    }.items():
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ValueError, match=r"pip install .*perceptual"):
            evaluate_tokenizer(image_tokenizer, TensorImages(images), config)


def test_prefix_pictures_show_originals_and_every_prefix(
    image_tokenizer: ImageTokenizer, images: Tensor
) -> None:
    image_tokenizer.eval()
    picture = np.asarray(prefix_pictures(image_tokenizer, TensorImages(images), 4))
    cell = 64 + GUTTER
    left = picture.shape[1] - 4 * cell - GUTTER
    assert left > 0  # the names of the rows
    assert picture.shape[0] == 4 * cell + GUTTER
    chosen = images[[0, 5, 10, 15]]
    prefixes = image_tokenizer.decode_prefixes(image_tokenizer.encode(from_uint8(chosen)))
    for row, expected in enumerate([chosen, *(to_uint8(prefix) for prefix in prefixes)]):
        for column in range(4):
            top, start = GUTTER + row * cell, left + GUTTER + column * cell
            shown = picture[top : top + 64 : 4, start : start + 64 : 4]
            np.testing.assert_array_equal(shown, expected[column].permute(1, 2, 0).numpy())

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lambda24.common.images import from_uint8
from lambda24.common.metrics.pairs import ms_ssim, psnr, ssim
from lambda24.common.metrics.perceptual import EfficientNetLite0Perceptual, build_perceptual
from lambda24.common.metrics.reference import TensorImages
from lambda24.tokenizer.meter import ReconstructionMeter, TokenizerEvaluationConfig

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pairs(count: int, side: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, side, side)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    noise = torch.randint(0, 40, shape, generator=generator)
    return images, (images.int() + noise).clamp(max=255).to(torch.uint8)


def test_means_of_batches_are_those_of_all_images() -> None:
    pytest.importorskip("pytorch_msssim")
    images, outputs = pairs(3, 162)
    perceptual = EfficientNetLite0Perceptual(num_stages=1, min_size=None)
    config = TokenizerEvaluationConfig(extractor=None, ms_ssim=True, perceptual=perceptual)
    meter = ReconstructionMeter(config, CPU)
    for part in ([0, 1], [2]):
        meter.update(images[part], outputs[part])
    scores = meter.report(TensorImages(images))
    assert scores.psnr == pytest.approx(psnr(outputs, images).mean().item())
    assert scores.ssim == pytest.approx(ssim(outputs, images).mean().item())
    assert scores.ms_ssim == pytest.approx(ms_ssim(outputs, images).mean().item())
    network = build_perceptual(perceptual)
    assert network is not None
    expected = network(from_uint8(outputs), from_uint8(images)).mean().item()
    assert scores.perceptual == pytest.approx(expected, rel=1e-4)
    assert scores.lpips is None
    assert scores.rfid is None

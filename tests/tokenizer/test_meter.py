from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from common.extractors import EfficientNetLite0Features
from common.features import EfficientNetLite0Perceptual, build_perceptual
from common.images import from_uint8
from common.metrics import ms_ssim, psnr, ssim
from common.processes import share
from common.reference import TensorImages
from tokenizer.meter import ReconstructionMeter, ReconstructionScores, TokenizerEvaluationConfig

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


def test_two_processes_report_what_one_does() -> None:
    images, outputs = pairs(9, 16)
    config = TokenizerEvaluationConfig(extractor=EfficientNetLite0Features(size=32))
    alone = ReconstructionMeter(config, CPU)
    alone.update(images, outputs)
    expected = alone.report(TensorImages(images))
    assert expected.rfid is not None
    assert expected.rfid > 0
    kept: list[list[Tensor]] = [[], []]

    def processes(rank: int, replay: bool) -> Any:
        calls = iter(range(100))

        def collect(local: Tensor) -> Tensor:
            kept[rank].append(local)
            if not replay:
                return torch.cat([local, local])
            number = next(calls)
            return torch.cat([kept[0][number], local])

        from contextlib import nullcontext

        return SimpleNamespace(
            num_processes=2,
            process_index=rank,
            device=CPU,
            gather=collect,
            main_process_first=nullcontext,
        )

    found: list[ReconstructionScores] = []
    for rank in range(2):
        accelerator = processes(rank, replay=rank == 1)
        meter = ReconstructionMeter(config, CPU, accelerator)
        mine = share(9, accelerator)
        meter.update(images[mine], outputs[mine])
        found.append(meter.report(TensorImages(images)))
    assert found[1].psnr == pytest.approx(expected.psnr)
    assert found[1].ssim == pytest.approx(expected.ssim)
    assert found[1].rfid == pytest.approx(expected.rfid, rel=1e-3)

"""Program of test_processes.py: trains quantizers for three steps on one of two processes.

`python two_processes.py RANK FOLDER` writes losses, gradients and state to FOLDER/RANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[3]))

from lambda24.tokenizer.pyramid.multiscale import MultiScaleQuantizer, PyramidConfig
from lambda24.tokenizer.quantizers import Quantizer, build_quantizer

CONFIGS: dict[str, dict[str, Any]] = {
    "bsq": {"kind": "bsq", "num_bits": 6, "group_bits": 3},
    "lfq": {"kind": "lfq", "num_bits": 6},
    "vq": {"kind": "vq", "dim": 6, "codebook_size": 32},
    "vq_ema": {
        "kind": "vq_ema",
        "dim": 6,
        "codebook_size": 32,
        "decay": 0.5,
        "revival_threshold": 0.8,
    },
    "vq_revival": {"kind": "vq", "dim": 6, "codebook_size": 32, "revival_threshold": 0.5},
    "simvq": {"kind": "simvq", "dim": 6, "codebook_size": 32},
    "gsq": {"kind": "gsq", "dim": 6, "groups": 2, "codebook_size": 16},
    "lgq": {"kind": "lgq", "dim": 6, "codebook_size": 32, "chunk_elements": 640},
    "spherical": {"kind": "leech", "commitment_weight": 1.0},
}
PYRAMIDS: dict[str, dict[str, Any]] = {
    "pyramid_vq_ema": {**CONFIGS["vq_ema"], "codebook_size": 256},
    "pyramid_gsq": {**CONFIGS["gsq"], "revival_threshold": 0.5},
}
BATCH, STEPS = 48, 3


class Autoencoder(nn.Module):
    """A linear map, a quantizer and the loss of a sum over channels."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.quantizer = build_quantizer(config)
        self.encoder = nn.Linear(5, self.quantizer.dim)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(3)
            for parameter in self.encoder.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        quantized = self.quantizer(self.encoder(x))
        error = (quantized.z_q.sum(-1) - x.sum(-1)).square().mean()
        return error + self.quantizer.total_loss(quantized.losses), quantized.losses


class PyramidAutoencoder(nn.Module):
    """A linear map to a 4x4 latent and a pyramid with learned gains and phi."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        scales = PyramidConfig(scales=(1, 2, 4), num_phis=2)
        self.pyramid = MultiScaleQuantizer(
            scales, build_quantizer(config, passes_per_batch=len(scales.scales))
        )
        self.encoder = nn.Linear(5, 16 * self.quantizer.dim)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(3)
            for parameter in self.encoder.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    @property
    def quantizer(self) -> Quantizer:
        return self.pyramid.quantizer

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        quantized = self.pyramid(self.encoder(x).unflatten(1, (-1, 4, 4)))
        error = (quantized.z_q.sum((1, 2, 3)) - x.sum(-1)).square().mean()
        return 0.001 * error + quantized.loss, {"pyramid": quantized.loss}


def train(model: Autoencoder | PyramidAutoencoder, rank: int, world_size: int) -> dict[str, Tensor]:
    quantizer = model.quantizer
    x = torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(7))
    # Gathered rows may be shared unequally; the means of a step assume equal shares.
    shares = [BATCH // 3, BATCH - BATCH // 3] if world_size == 2 else [BATCH]
    if isinstance(model, Autoencoder):
        quantizer.init_from_data(model.encoder(x.split(shares)[rank]).detach())
    revival = getattr(quantizer, "revival", None)
    if revival is not None:  # just below: one step decides
        revival.usage.fill_(0.995 * revival.threshold / quantizer.passes_per_batch)
    wrapped = DistributedDataParallel(model) if world_size > 1 else model
    result: dict[str, Tensor] = {}
    for step in range(STEPS):
        quantizer.schedule(step, STEPS)
        batch = x.roll(step, 0).chunk(world_size)[rank]
        model.zero_grad()
        loss, losses = wrapped(batch)
        loss.backward()
        for name, value in losses.items():
            result[f"{step}.loss.{name}"] = quantizer.reduce_mean(value.detach())
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            result[f"{step}.grad.{name}"] = parameter.grad.clone()
            with torch.no_grad():
                parameter -= 0.01 * parameter.grad
        quantizer.after_step()
        usage = getattr(revival or quantizer, "usage", None)
        if usage is not None:
            result[f"{step}.revived"] = (usage == 1 / quantizer.passes_per_batch).sum()
    for name, value in model.state_dict().items():
        result[f"state.{name}"] = value.clone()
    return result


def train_all(rank: int, world_size: int) -> dict[str, dict[str, Tensor]]:
    models: dict[str, Autoencoder | PyramidAutoencoder] = {
        **{name: Autoencoder(config) for name, config in CONFIGS.items()},
        **{name: PyramidAutoencoder(config) for name, config in PYRAMIDS.items()},
    }
    return {name: train(model, rank, world_size) for name, model in models.items()}


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.save(train_all(rank, 2), folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

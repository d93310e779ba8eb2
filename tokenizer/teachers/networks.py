"""Frozen vision foundation models whose feature maps a latent can be aligned with.

`build_teacher(config)` gives a module from images (B, 3, H, W) in [-1, 1] to features (B, C, h, w).
Each teacher sees images at its own square size and normalisation, whatever the tokenizer's are.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from lambda24.common.config import config_class
from lambda24.common.frozen_networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    OFFLINE,
    load_dinov2,
    load_timm,
)
from lambda24.common.metrics.perceptual import efficientnet_lite0, fuse_batch_norms
from lambda24.common.training.launch import Precision, resolve_precision

LAST_BLOCKS = {8: 2, 16: 4, 32: 6}
"""The last block of EfficientNet-Lite0 of each stride."""


@config_class
class EfficientNetLite0Teacher:
    """ImageNet classifier of the `offline` extra: needs no download.

    Args:
        size: pixels of the square that images are resized to; the grid has size / stride positions
            a side. 128 with stride 16 meets an 8x8 latent without interpolation.
        stride: which stage is read: the last one of stride 8, 16 or 32, with 40, 112 or 320
            channels.
        precision: of the teacher itself. On one core with bf16 (AMX), 128 pixels and stride 16
            take 3.8 ms an image in bf16 and 7.1 ms in fp32; 64 pixels and stride 8 take 0.8 ms.
    """

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    size: Annotated[int, Field(ge=32, le=512)] = 128
    stride: Literal[8, 16, 32] = 16
    precision: Precision = "auto"


@config_class
class DINOv2Teacher:
    """A DINOv2 of `transformers`, with or without registers: its patch tokens after the last norm.

    Args:
        model: hub id, such as "facebook/dinov2-large" (1,024 channels), or a local folder.
        size: a multiple of the patch size. 224 is a 16x16 grid of 14-pixel patches, which meets
            the latent of 256-pixel images at stride 16 without interpolation.
    """

    kind: Literal["dinov2"] = "dinov2"
    model: str = "facebook/dinov2-large"
    size: Annotated[int, Field(ge=14)] = 224
    precision: Precision = "auto"


@config_class
class TimmTeacher:
    """A model of `timm`, at the input size, mean and standard deviation it was trained with.

    Args:
        model: name ("vit_base_patch16_224.mae") or hub id ("hf-hub:timm/...").
        weights_path: local .safetensors or .pth file of that model; None downloads it.
        size: another input size, in pixels.
        layer: which of the model's feature maps (blocks of a ViT, stages of a CNN); -1 is the last.
    """

    kind: Literal["timm"] = "timm"
    model: str
    weights_path: str | None = None
    size: Annotated[int, Field(ge=14)] | None = None
    layer: int = -1
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if self.weights_path is not None and ":" in self.model:
            raise ValueError(
                f"weights_path {self.weights_path!r} needs a model by name, got {self.model!r}, "
                "which brings its own weights"
            )


TeacherConfig = Annotated[
    EfficientNetLite0Teacher | DINOv2Teacher | TimmTeacher, Field(discriminator="kind")
]


class Teacher(nn.Module, ABC):
    """Frozen feature maps. Stays in eval mode, also as part of a module that trains."""

    def __init__(
        self,
        network: nn.Module,
        *,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        precision: Precision,
    ) -> None:
        super().__init__()
        self.network: Any = network.eval().requires_grad_(False)
        self.size = size
        self.precision = resolve_precision(precision)
        self.mean: Tensor
        self.std: Tensor
        # Of images in [-1, 1] = 2 x - 1, where x in [0, 1] is what the numbers are about.
        self.register_buffer("mean", 2 * torch.tensor(mean).view(3, 1, 1) - 1, persistent=False)
        self.register_buffer("std", 2 * torch.tensor(std).view(3, 1, 1), persistent=False)
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features (B, C, h, w) float32 of images (B, 3, H, W) in [-1, 1]."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        device = images.device.type
        with torch.autocast(device, enabled=False):
            images = self.normalise(images.float())
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            features = self.features(images)
        return features.float()

    def normalise(self, images: Tensor) -> Tensor:
        """What the network sees: resized without aliasing, then its own mean and deviation."""
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(
                images, size=(self.size, self.size), mode="bilinear", antialias=True
            )
        return (images - self.mean) / self.std

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Features (B, C, h, w) of normalised images (B, 3, size, size)."""

    def output_shape(self) -> tuple[int, int, int]:
        """(C, h, w), found by trying.

        Raises:
            ValueError: a network that gives no feature map.
        """
        features = self(torch.zeros(1, 3, self.size, self.size, device=self.mean.device))
        if features.ndim != 4:
            raise ValueError(f"teacher gives {tuple(features.shape)}, not a map (B, C, h, w)")
        return (features.shape[1], features.shape[2], features.shape[3])

    def weights_hash(self) -> str:
        """Of every tensor by name, so that features of other weights are told apart."""
        digest = hashlib.sha256()
        for name, value in self.network.state_dict().items():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def train(self, mode: bool = True) -> Teacher:
        del mode
        return super().train(False)


class EfficientNetLite0Stages(Teacher):
    """The stages of EfficientNet-Lite0 up to one stride."""

    def __init__(self, config: EfficientNetLite0Teacher) -> None:
        network: Any = fuse_batch_norms(efficientnet_lite0())
        blocks = network.blocks[: LAST_BLOCKS[config.stride] + 1]
        stages = nn.Sequential(network.conv_stem, network.bn1, *blocks)
        super().__init__(
            stages.to(memory_format=torch.channels_last),
            size=config.size,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            precision=config.precision,
        )

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))
        return features.contiguous()


class DINOv2PatchTokens(Teacher):
    """Patch tokens of a DINOv2, laid out on their grid; class and register tokens are dropped."""

    def __init__(self, config: DINOv2Teacher) -> None:
        advice = f"; give a local folder, or {OFFLINE}"
        network = load_dinov2(config.model, field="teacher.model", advice=advice)
        sizes: Any = network.config
        if config.size % sizes.patch_size:
            raise ValueError(
                f"teacher.size must be a multiple of the patch size {sizes.patch_size}, "
                f"got {config.size}"
            )
        super().__init__(
            network,
            size=config.size,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            precision=config.precision,
        )
        self.num_prefix = 1 + getattr(sizes, "num_register_tokens", 0)

    def features(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.network(pixel_values=images).last_hidden_state
        side = self.size // self.network.config.patch_size
        return rearrange(tokens[:, self.num_prefix :], "b (h w) c -> b c h w", h=side)


class TimmFeatureMap(Teacher):
    """One feature map of a timm model, after the final norm where the model has one for it."""

    def __init__(self, config: TimmTeacher) -> None:
        network = load_timm(config.model, config.weights_path, config.size)
        data = timm.data.resolve_model_data_config(network)
        super().__init__(
            network,
            size=data["input_size"][-1],
            mean=data["mean"],
            std=data["std"],
            precision=config.precision,
        )
        self.layer = config.layer

    def features(self, images: Tensor) -> Tensor:
        try:
            maps: list[Tensor] = self.network.forward_intermediates(
                images,
                indices=[self.layer],
                norm=True,
                stop_early=True,
                output_fmt="NCHW",
                intermediates_only=True,
            )
        except AssertionError as error:  # timm's, on an index out of range
            raise ValueError(f"teacher.layer {self.layer}: {error}") from error
        return maps[0]


def build_teacher(config: TeacherConfig) -> Teacher:
    """Builds a teacher; leaves the global random state alone.

    Raises:
        ValueError: weights that are missing, do not fit or cannot be downloaded, or a size that
            the network does not take.
    """
    # Networks are initialised before their weights are loaded; that must not move our own seeds.
    with torch.random.fork_rng(devices=[]):
        match config:
            case EfficientNetLite0Teacher():
                return EfficientNetLite0Stages(config)
            case DINOv2Teacher():
                return DINOv2PatchTokens(config)
            case TimmTeacher():
                return TimmFeatureMap(config)
            case _:
                raise AssertionError(config)

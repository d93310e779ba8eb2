"""Quantizers of other code: named in configs, built, saved and loaded like ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from lambda24.common.config import config_class, from_dict, to_dict
from lambda24.tokenizer import ImageTokenizer, TokenizerConfig
from lambda24.tokenizer.quantizers import (
    Quantized,
    Quantizer,
    build,
    build_quantizer,
    register_quantizer,
)
from lambda24.tokenizer.quantizers.base import straight_through


@config_class
class SignConfig:
    kind: Literal["sign"] = "sign"
    dim: int = 4


class Sign(Quantizer):
    """One bit a channel."""

    def __init__(self, config: SignConfig) -> None:
        super().__init__(config.dim, (2**config.dim,), loss_weights={})

    def _quantize(self, z: Tensor) -> Quantized:
        indices = self._encode(z)
        code = self._decode(indices)
        return Quantized(straight_through(code, z), indices, code, {}, {})

    def _encode(self, z: Tensor) -> Tensor:
        return ((z > 0).long() << torch.arange(self.dim)).sum(-1, keepdim=True)

    def _decode(self, indices: Tensor) -> Tensor:
        return 2.0 * (indices >> torch.arange(self.dim) & 1) - 1


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register_quantizer(SignConfig, Sign)
    yield
    build._registered.clear()


def config(quantizer: dict[str, Any]) -> TokenizerConfig:
    return from_dict(
        TokenizerConfig,
        {
            "image_size": 8,
            "pyramid": {"scales": [1, 2, 4]},
            "autoencoder": {"kind": "cnn", "channels": [8], "patch_size": 2, "groups": 4},
            "quantizer": quantizer,
        },
    )


def test_a_registered_quantizer_is_one_config_line(tmp_path: Path) -> None:
    made = config({"kind": "sign", "dim": 3})
    assert to_dict(made)["quantizer"] == {"kind": "sign", "dim": 3}
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(made).eval()
    assert isinstance(tokenizer.pyramid.quantizer, Sign)
    assert tokenizer.spec.codebook_sizes == (8,)
    tokenizer.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    tokens = ImageTokenizer.from_pretrained(tmp_path).encode(images)
    assert torch.equal(tokens.indices, tokenizer.encode(images).indices)
    assert isinstance(build_quantizer({"kind": "sign"}), Sign)


def test_ours_stay_what_they_were() -> None:
    assert to_dict(config({"kind": "leech"}))["quantizer"]["kind"] == "leech"


def test_errors_name_registered_kinds() -> None:
    with pytest.raises(ValueError, match=r"quantizer\.kind: got 'sgin' .*'leech', .*'registered'"):
        config({"kind": "sgin"})
    with pytest.raises(ValueError, match=r"dimm: got 3, but there is no such key, did you mean"):
        config({"kind": "sign", "dimm": 3})


def test_what_cannot_be_registered() -> None:
    with pytest.raises(ValueError, match="'sign' is taken"):
        register_quantizer(SignConfig, Sign)

    @config_class
    class Nameless:
        dim: int = 4

    with pytest.raises(ValueError, match="Nameless needs a field like kind"):
        register_quantizer(Nameless, Sign)

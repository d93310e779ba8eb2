import pytest
import torch

from lambda24.common.config import config_class, from_dict
from lambda24.generator.heads import (
    BitsHead,
    BitsHeadConfig,
    CategoricalHead,
    CategoricalHeadConfig,
    CoordinatesHead,
    CoordinatesHeadConfig,
    HeadConfig,
    LatticeHead,
    LatticeHeadConfig,
    build_head,
)
from lambda24.tokenizer.tokens import TokenSpec

SPEC = TokenSpec(scales=(1,), codebook_sizes=(196_560,), code_dim=24, latent_size=1)


@config_class
class Holder:
    head: HeadConfig


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"kind": "lattice"}, LatticeHeadConfig(num_mixtures=1)),
        ({"kind": "lattice", "num_mixtures": 4}, LatticeHeadConfig(num_mixtures=4)),
        ({"kind": "categorical"}, CategoricalHeadConfig(chunk_size=256)),
    ],
)
def test_kind_chooses_the_config(data: dict[str, object], expected: object) -> None:
    assert from_dict(Holder, {"head": data}).head == expected


@pytest.mark.parametrize(
    "data", [{"kind": "dense"}, {"kind": "lattice", "num_mixtures": 0}, {"kind": "lattice", "k": 2}]
)
def test_bad_configs_are_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="head"):
        from_dict(Holder, {"head": data})


def test_builds_what_the_config_says() -> None:
    assert isinstance(build_head(LatticeHeadConfig(), 8, SPEC), LatticeHead)
    assert isinstance(build_head(CoordinatesHeadConfig(), 8, SPEC), CoordinatesHead)
    bits = TokenSpec(scales=(1,), codebook_sizes=(16,), code_dim=4, latent_size=1)
    assert isinstance(build_head(BitsHeadConfig(), 8, bits), BitsHead)
    small = TokenSpec(scales=(1,), codebook_sizes=(10,), code_dim=3, latent_size=1)
    assert isinstance(build_head(CategoricalHeadConfig(), 8, small), CategoricalHead)
    with pytest.raises(ValueError, match=r"196560.*10"):
        build_head(LatticeHeadConfig(), 8, small)


def test_unknown_config_object() -> None:
    with pytest.raises(ValueError, match="no builder for dict"):
        build_head({"kind": "lattice"}, 8, SPEC)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [
        LatticeHeadConfig(),
        LatticeHeadConfig(num_mixtures=2),
        CategoricalHeadConfig(),
        CoordinatesHeadConfig(),
        BitsHeadConfig(),
    ],
)
def test_guidance_of_hidden_states_is_guidance_of_logits(config: HeadConfig) -> None:
    small = TokenSpec(scales=(1,), codebook_sizes=(16, 4), code_dim=4, latent_size=1)
    dense = isinstance(config, (CategoricalHeadConfig, BitsHeadConfig))
    head = build_head(config, 8, small if dense else SPEC)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    one, two = torch.randn(2, 3, 8)
    with torch.no_grad():
        found = head.guided(one, two, 2.5).logits()
        expected = head.distribution(one).guided(head.distribution(two), 2.5).logits()
    assert head.is_linear == (config != LatticeHeadConfig(num_mixtures=2))
    shift = (found - expected).nan_to_num().amax(-1, keepdim=True)  # -inf pads a short codebook
    torch.testing.assert_close(found, expected + shift, atol=2e-4, rtol=1e-5)
    assert shift.abs().max() < 1e-3

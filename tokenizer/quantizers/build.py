"""From a config to a quantizer: the tagged union of all kinds, those of other code, one builder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Discriminator, PlainSerializer, PlainValidator, Tag

from lambda24.common.config import config_class, config_classes, from_dict, to_dict
from lambda24.tokenizer.quantizers.base import Quantizer
from lambda24.tokenizer.quantizers.binary import BinaryQuantizer, BSQConfig, LFQConfig
from lambda24.tokenizer.quantizers.ema import EMAConfig, EMAVectorQuantizer
from lambda24.tokenizer.quantizers.fsq import FSQ, FSQConfig
from lambda24.tokenizer.quantizers.gsq import GroupedSphericalQuantizer, GSQConfig
from lambda24.tokenizer.quantizers.lgq import LGQ, LGQConfig
from lambda24.tokenizer.quantizers.simvq import SimVQ, SimVQConfig
from lambda24.tokenizer.quantizers.spherical import LeechConfig, SphericalConfig, SphericalQuantizer
from lambda24.tokenizer.quantizers.vq import VectorQuantizer, VQConfig

# Kinds of other code: config class and what builds a quantizer from it.
OTHER_CODE = "registered"
_registered: dict[str, tuple[type, Callable[[Any], Quantizer]]] = {}


def register_quantizer(config: type, build: Callable[[Any], Quantizer]) -> None:
    """Makes a quantizer of other code one that configs can name.

    Args:
        config: a `config_class` with `kind: Literal["my-kind"] = "my-kind"`.
        build: from such a config to the quantizer, usually its class.

    Raises:
        ValueError: a config without a kind, or one whose kind there is already.
    """
    info = getattr(config, "__pydantic_fields__", {}).get("kind")
    if info is None or get_origin(info.annotation) is not Literal:
        raise ValueError(f'{config.__name__} needs a field like kind: Literal["name"] = "name"')
    (kind,) = get_args(info.annotation)
    if kind in _known_kinds():
        raise ValueError(f"quantizer.kind {kind!r} is taken (known: {', '.join(_known_kinds())})")
    _registered[kind] = (config, build)


def _known_kinds() -> list[str]:
    builtin = [get_args(cls.__pydantic_fields__["kind"].annotation) for cls in _BUILTIN]
    return [*(kind for kinds in builtin for kind in kinds), *_registered]


def _tag(value: Any) -> Any:
    """Which variant a mapping or a config is of."""
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    if isinstance(kind, str) and kind in _registered:
        return OTHER_CODE
    return "fsq" if kind == "ifsq" else kind


def _validate_registered(value: Any) -> Any:
    if isinstance(value, Mapping):
        return from_dict(_registered[value["kind"]][0], value)
    return value


QuantizerConfig = Annotated[
    Annotated[LeechConfig, Tag("leech")]
    | Annotated[SphericalConfig, Tag("spherical")]
    | Annotated[BSQConfig, Tag("bsq")]
    | Annotated[LFQConfig, Tag("lfq")]
    | Annotated[FSQConfig, Tag("fsq")]
    | Annotated[VQConfig, Tag("vq")]
    | Annotated[EMAConfig, Tag("vq_ema")]
    | Annotated[SimVQConfig, Tag("simvq")]
    | Annotated[GSQConfig, Tag("gsq")]
    | Annotated[LGQConfig, Tag("lgq")]
    | Annotated[
        Any, PlainValidator(_validate_registered), PlainSerializer(to_dict), Tag(OTHER_CODE)
    ],
    Discriminator(_tag),
]
_BUILTIN: list[Any] = config_classes(QuantizerConfig)


def build_quantizer(
    config: QuantizerConfig | Mapping[str, Any], *, passes_per_batch: int = 1
) -> Quantizer:
    """Builds the quantizer of a config or of a mapping with a `kind`.

    Args:
        passes_per_batch: training passes of a batch, the scales of a pyramid: averages of usage
            are in units of one.

    Raises:
        ValueError: a mapping with an unknown kind or field, or a value out of range.
    """
    if isinstance(config, Mapping):
        config = quantizer_config(config)
    match config:
        case LeechConfig() | SphericalConfig():
            return SphericalQuantizer(config)
        case BSQConfig() | LFQConfig():
            return BinaryQuantizer(config)
        case FSQConfig():
            return FSQ(config)
        case VQConfig():
            return VectorQuantizer(config, passes_per_batch=passes_per_batch)
        case EMAConfig():
            return EMAVectorQuantizer(config, passes_per_batch=passes_per_batch)
        case SimVQConfig():
            return SimVQ(config)
        case GSQConfig():
            return GroupedSphericalQuantizer(config, passes_per_batch=passes_per_batch)
        case LGQConfig():
            return LGQ(config, passes_per_batch=passes_per_batch)
        case _:
            for known, build in _registered.values():
                if isinstance(config, known):
                    return build(config)
            raise ValueError(f"quantizer: no builder for {type(config).__name__}")


def quantizer_config(data: Mapping[str, Any]) -> QuantizerConfig:
    """Validates a mapping such as `{"kind": "gsq", "groups": 2}`.

    Raises:
        ValueError: every problem, one line each.
    """
    return from_dict(_QuantizerField, {"quantizer": dict(data)}).quantizer


@config_class
class _QuantizerField:
    quantizer: QuantizerConfig

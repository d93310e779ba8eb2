"""Equal-bit settings: the config of each kind that spends a given number of bits a token.

Comparisons are at equal bits by construction; requests that a kind cannot meet are refused with the
nearest that it can.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.quantizers.build import QuantizerConfig, build_quantizer, quantizer_config

_FREE_CODES = ("random", "fibonacci", "leech_subset")  # spherical codes of any size
_KINDS = ("leech", "spherical", "bsq", "lfq", "fsq", "ifsq", "vq", "vq_ema", "simvq", "gsq", "lgq")
_MAX_CODES = 2**24  # of a table that is stored row by row
_MIN_LEVELS, _MAX_LEVELS, _MAX_CHANNELS = 4, 16, 8
# The FSQ paper's recommendations (arXiv 2309.15505, section 4.1).
_FSQ_LEVELS = {
    8: (8, 6, 5),
    10: (8, 5, 5, 5),
    12: (7, 5, 5, 5, 5),
    14: (8, 8, 8, 6, 5),
    16: (8, 8, 8, 5, 5, 5),
}


def match_bits(
    kind: str, bits: float, *, tolerance: float = 0.1, **settings: Any
) -> QuantizerConfig:
    """A config of `kind` whose tokens carry `bits` within `tolerance`.

    Args:
        kind: a quantizer's kind.
        bits: wanted sum of log2 of the codebook sizes.
        tolerance: greatest difference that is accepted, in bits.
        settings: further fields of the config (dim, groups, code, ...), not those that set bits.

    Raises:
        ValueError: unknown kind, or bits out of reach; the message names the nearest feasible.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind: got {kind!r} (allowed: {', '.join(_KINDS)})")
    if bits < 1:
        raise ValueError(f"bits must be at least 1, got {bits}")
    chosen, feasible = _nearest_setting(kind, bits, settings)
    if abs(feasible - bits) > tolerance:
        raise ValueError(
            f"{kind} cannot spend {bits:g} bits within {tolerance:g}; "
            f"the nearest it can is {feasible:.4f} bits ({_described(chosen, settings)})"
        )
    return quantizer_config({"kind": kind, **settings, **chosen})


def _nearest_setting(
    kind: str, bits: float, settings: dict[str, Any]
) -> tuple[dict[str, Any], float]:
    """The fields that set the bits, and the bits they give."""
    match kind:
        case "leech":
            return {}, math.log2(leech.NUM_CODES)
        case "spherical":
            return _spherical_setting(bits, settings)
        case "bsq" | "lfq":
            codebooks = int(settings.get("num_codebooks", 1))
            most = 62 * codebooks
            num_bits = min(most, max(1, round(bits / codebooks)) * codebooks)
            return {"num_bits": num_bits}, float(num_bits)
        case "fsq" | "ifsq":
            levels = _fsq_levels(bits)
            return {"levels": list(levels)}, math.log2(math.prod(levels))
        case _:
            groups = int(settings.get("groups", 1)) if kind == "gsq" else 1
            size = min(_MAX_CODES, max(2, round(2 ** min(bits / groups, 64))))
            return {"codebook_size": size}, groups * math.log2(size)


def _spherical_setting(bits: float, settings: dict[str, Any]) -> tuple[dict[str, Any], float]:
    code = str(settings.get("code", "leech_subset"))
    if code not in _FREE_CODES:
        return {}, build_quantizer({"kind": "spherical", **settings}).bits
    most = leech.NUM_CODES if code == "leech_subset" else _MAX_CODES
    size = min(most, max(2, round(2 ** min(bits, 64))))
    return {"code": code, "size": size}, math.log2(size)


@lru_cache
def _fsq_levels(bits: float) -> tuple[int, ...]:
    """Recommended levels where there are any, else the closest product, evenest on ties."""
    if bits in _FSQ_LEVELS:
        return _FSQ_LEVELS[int(bits)]
    best: tuple[int, ...] = (_MIN_LEVELS,)
    best_key = (math.inf, 0.0)
    for channels in range(1, _MAX_CHANNELS + 1):
        for levels in _descending(channels, _MAX_LEVELS, bits + 0.5):
            error = round(abs(math.log2(math.prod(levels)) - bits), 2)
            key = (error, float(levels[0] - levels[-1]))
            if key < best_key:
                best, best_key = levels, key
    return best


def _descending(channels: int, largest: int, most_bits: float) -> list[tuple[int, ...]]:
    if channels == 0:
        return [()]
    return [
        (first, *rest)
        for first in range(_MIN_LEVELS, largest + 1)
        if math.log2(first) <= most_bits
        for rest in _descending(channels - 1, first, most_bits - math.log2(first))
    ]


def _described(chosen: dict[str, Any], settings: dict[str, Any]) -> str:
    fields = {**settings, **chosen}
    return ", ".join(f"{key}={value}" for key, value in fields.items()) or "its only size"

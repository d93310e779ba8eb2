"""The 196,560 minimal vectors of the Leech lattice in a canonical, versioned order.

Integer coordinates, squared norm 32. Three shapes, in this order: type 2 (±2^8, 0^16) on an octad
of the Golay code with an even number of minus signs; type 3 (∓3, ±1^23), signs a Golay word and one
coordinate times -3; type 4 (±4^2, 0^22). `unrank` and `rank` are closed forms: decoding needs no
table of codes.

Order, version 1 (bricks p, q1 = p+1, q2 = p+2 mod 3; sign bit 1 = minus; k3 = minus bits of the
first three tetrad coordinates, first one highest; labels as in `golay`):
    type 2a      0 + p*128 + s7
        brick p full, s7 = minus bits of its coordinates 0..6
    type 2b    384 + (((p*7 + a-1)*2 + pi)*16 + f1)*16 + f2
        brick p empty; q1, q2: tetrad (0, a), complemented if f>>3, k3 = f&7, sign parity pi
    type 2c  11136 + (((((x-1)*3 + p)*8 + c)*8 + b)*2 + h)*32 + k3*4 + s1*2 + s2
        p: tetrad t of x, complemented if h, sign parity pi, c = 2t + pi;
        q1: pair t' of x, signs (s1, s1^pi'), b = 2t' + pi'; q2: pair t^t', signs (s2, s2^pi^pi')
    type 3   97152 + ((((x*3 + p)*8 + c)*8 + b)*8 + s)*8 + i
        labels c, b, b^c and complements s on p, q1, q2; coordinate i of brick p times -3
    type 4  195456 + 4*(i*(47-i)/2 + j-i-1) + 2*minus_i + minus_j
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lambda24.tokenizer.lattices import golay

NUM_CODES = 196_560
DIM = 24
SQUARED_NORM = 32
ORDER_VERSION = 1

START_2B, START_2C, START_3, START_4 = 384, 11_136, 97_152, 195_456
TYPE_RANGES = {2: (0, START_3), 3: (START_3, START_4), 4: (START_4, NUM_CODES)}


# Indices of version 1: plain arithmetic for integers, tensors and compiled code alike.


def index_2a(p: Any, s7: Any) -> Any:
    return p * 128 + s7


def code_2b(p: Any, a: Any, pi: Any) -> Any:
    return (p * 7 + a - 1) * 2 + pi


def index_2b(code: Any, f1: Any, f2: Any) -> Any:
    """`code` as `code_2b` has it."""
    return START_2B + (code * 16 + f1) * 16 + f2


def labelled_code(x: Any, p: Any, c: Any) -> Any:
    """`code` of types 2c (x - 1 for x) and 3."""
    return (x * 3 + p) * 8 + c


def index_2c(code: Any, b: Any, f: Any, s1: Any, s2: Any) -> Any:
    """`code` as `labelled_code` has it, f = 8 h + k3."""
    return START_2C + (code * 8 + b) * 64 + f * 4 + s1 * 2 + s2


def index_3(code: Any, b: Any, s: Any, i: Any) -> Any:
    """`code` as `labelled_code` has it."""
    return START_3 + ((code * 8 + b) * 8 + s) * 8 + i


def index_4(i: Any, j: Any, minus_i: Any, minus_j: Any) -> Any:
    """Coordinates i < j."""
    return START_4 + 4 * ((i * (47 - i) >> 1) + j - i - 1) + 2 * minus_i + minus_j


@lru_cache(maxsize=1)
def _tables() -> dict[str, Tensor]:
    labels = [golay.brick_labels(word) for word in range(256)]
    brick = [golay.brick_word(x, a) for x in range(8) for a in range(8)]
    tetrad = [0] * 4 + [golay.brick_word(x, a) for x in range(1, 8) for a in golay.tetrad_labels(x)]
    pair = [0] * 4 + [sum(1 << k for k in golay.pair(x, t)) for x in range(1, 8) for t in range(4)]
    spread = torch.zeros(256, 16, dtype=torch.int64)  # tetrad, four sign bits -> minus byte
    position = torch.zeros(256, 8, dtype=torch.int64)  # k-th set bit of a byte
    for word in range(256):
        places = golay.support(word)
        position[word, : len(places)] = torch.tensor(places, dtype=torch.int64)
        if len(places) == 4:
            for bits in range(16):
                spread[word, bits] = sum(
                    1 << k for n, k in enumerate(places) if bits >> (3 - n) & 1
                )
    class_of = torch.zeros(8, 8, dtype=torch.int64)  # (x, a) -> t
    for x in range(1, 8):
        for t in range(4):
            class_of[x, golay.tetrad_labels(x)[t]] = class_of[x, golay.pair_labels(x)[t]] = t
    i, j = torch.triu_indices(DIM, DIM, 1)
    return {
        "label_x": torch.tensor([label[0] for label in labels]),
        "label_a": torch.tensor([label[1] for label in labels]),
        "weight": torch.tensor([word.bit_count() for word in range(256)]),
        "brick": torch.tensor(brick).view(8, 8),
        "tetrad": torch.tensor(tetrad).view(8, 4),
        "pair": torch.tensor(pair).view(8, 4),
        "spread": spread,
        "position": position,
        "class_of": class_of,
        "pair_i": i,
        "pair_j": j,
    }


def _digits(index: Tensor, *radices: int) -> list[Tensor]:
    """Mixed-radix digits, most significant first; the first digit takes what is left."""
    digits = []
    for radix in reversed(radices):
        digits.append(index % radix)
        index = index // radix
    return [index, *reversed(digits)]


def _to_bits(words: Tensor) -> Tensor:
    return words[..., None] >> torch.arange(8) & 1


def _even_sign(bits: Tensor, count: int) -> Tensor:
    """Parity of the lowest `count` bits."""
    return (bits[:, None] >> torch.arange(count) & 1).sum(1) & 1


def _from_roles(roles: Tensor, p: Tensor) -> Tensor:
    """`(N, 3, 8)` in the order p, q1, q2 -> `(N, 24)` in coordinate order."""
    role = (torch.arange(3) - p[:, None]) % 3
    return roles.gather(1, role[:, :, None].expand(-1, -1, 8)).flatten(1)


def _type2(words: list[Tensor], minus: list[Tensor], p: Tensor) -> Tensor:
    carried, negative = _to_bits(torch.stack(words, 1)), _to_bits(torch.stack(minus, 1))
    return _from_roles(2 * carried * (1 - 2 * negative), p)


def _unrank_2a(index: Tensor) -> Tensor:
    p, signs = _digits(index, 128)
    minus = (signs[:, None] >> torch.arange(6, -1, -1) & 1) << torch.arange(7)
    byte = minus.sum(1) | _even_sign(signs, 7) << 7
    empty = torch.zeros_like(p)
    return _type2([empty + 0xFF, empty, empty], [byte, empty, empty], p)


def _unrank_2b(index: Tensor) -> Tensor:
    tables = _tables()
    p, a, pi, f1, f2 = _digits(index, 7, 2, 16, 16)
    words, minus = [torch.zeros_like(p)], [torch.zeros_like(p)]
    for f in (f1, f2):
        word = tables["brick"][0, a + 1] ^ 0xFF * (f >> 3)
        k3 = f & 7
        words.append(word)
        minus.append(tables["spread"][word, k3 << 1 | _even_sign(k3, 3) ^ pi])
    return _type2(words, minus, p)


def _unrank_2c(index: Tensor) -> Tensor:
    tables = _tables()
    x, p, c, b, h, k3, s1, s2 = _digits(index, 3, 8, 8, 2, 8, 2, 2)
    word = tables["tetrad"][x + 1, c >> 1] ^ 0xFF * h
    words, minus = [word], [tables["spread"][word, k3 << 1 | _even_sign(k3, 3) ^ c & 1]]
    for label, sign in ((b, s1), (b ^ c, s2)):
        pair = tables["pair"][x + 1, label >> 1]
        i, j = tables["position"][pair, :2].unbind(1)
        words.append(pair)
        minus.append(sign << i | (sign ^ label & 1) << j)
    return _type2(words, minus, p)


def _unrank_3(index: Tensor) -> Tensor:
    x, p, c, b, s, i = _digits(index, 3, 8, 8, 8, 8)
    brick = _tables()["brick"]
    words = [
        brick[x, label] ^ 0xFF * (s >> 2 - role & 1) for role, label in enumerate((c, b, b ^ c))
    ]
    roles = 1 - 2 * _to_bits(torch.stack(words, 1))  # (N, 3, 8)
    roles[torch.arange(len(p)), 0, i] *= -3
    return _from_roles(roles, p)


def _unrank_4(index: Tensor) -> Tensor:
    tables = _tables()
    pair, minus_i, minus_j = _digits(index, 2, 2)
    vectors = torch.zeros(len(index), DIM, dtype=torch.int64)
    row = torch.arange(len(index))
    vectors[row, tables["pair_i"][pair]] = 4 - 8 * minus_i
    vectors[row, tables["pair_j"][pair]] = 4 - 8 * minus_j
    return vectors


_FAMILIES = (
    (0, START_2B, _unrank_2a),
    (START_2B, START_2C, _unrank_2b),
    (START_2C, START_3, _unrank_2c),
    (START_3, START_4, _unrank_3),
    (START_4, NUM_CODES, _unrank_4),
)


def unrank(indices: Tensor) -> Tensor:
    """Integer vectors `(..., 24)` int8 of code indices `(...)`, in closed form.

    Raises:
        ValueError: an index outside [0, 196560), or a floating dtype.
    """
    if indices.is_floating_point() or indices.dtype == torch.bool:
        raise ValueError(f"indices must have an integer dtype, got {indices.dtype}")
    flat = indices.detach().reshape(-1).to("cpu", torch.int64)
    if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= NUM_CODES):
        raise ValueError(
            f"indices must lie in [0, {NUM_CODES}), got [{int(flat.min())}, {int(flat.max())}]"
        )
    vectors = torch.empty(len(flat), DIM, dtype=torch.int8)
    for start, stop, decode in _FAMILIES:
        rows = ((flat >= start) & (flat < stop)).nonzero()[:, 0]
        if len(rows):
            vectors[rows] = decode(flat[rows] - start).to(torch.int8)
    return vectors.view(*indices.shape, DIM).to(indices.device)


@lru_cache(maxsize=1)
def _codebook() -> Tensor:
    return unrank(torch.arange(NUM_CODES))


def codebook(dtype: torch.dtype = torch.int8, device: torch.device | str | None = None) -> Tensor:
    """All codes `(196560, 24)`: integer coordinates, or unit vectors for a floating dtype."""
    if dtype.is_floating_point:
        unit = _codebook().to(torch.float64) / SQUARED_NORM**0.5
        return unit.to(device=device, dtype=dtype)
    return _codebook().to(device=device, dtype=dtype, copy=True)


def _minus_bits(minus: Tensor, word: Tensor, count: int) -> Tensor:
    """Sign bits at the first `count` coordinates of `word`, first coordinate highest."""
    places = _tables()["position"][word, :count]
    bits = minus[:, None] >> places & 1
    return (bits << torch.arange(count - 1, -1, -1)).sum(1)


def _rank_2(vectors: Tensor) -> Tensor:
    tables, powers = _tables(), 1 << torch.arange(8)
    bricks = vectors.view(-1, 3, 8)
    words = ((bricks != 0) * powers).sum(2)  # (N, 3)
    minus = ((bricks < 0) * powers).sum(2)
    weights = tables["weight"][words]
    # p is the brick unlike the other two: full (8, 0, 0), empty (0, 4, 4) or tetrad (4, 2, 2).
    unlike = (weights != weights.roll(1, 1)) & (weights != weights.roll(-1, 1))
    p = unlike.to(torch.uint8).argmax(1)
    role = (p[:, None] + torch.arange(3)) % 3
    (w0, w1, w2), (m0, m1, m2) = words.gather(1, role).unbind(1), minus.gather(1, role).unbind(1)
    first = tables["weight"][w0]

    full = index_2a(p, _minus_bits(m0, w0, 7))
    a, pi = tables["label_a"][w1], tables["weight"][m1] & 1
    f1 = (w1 & 1) << 3 | _minus_bits(m1, w1, 3)
    f2 = (w2 & 1) << 3 | _minus_bits(m2, w2, 3)
    empty = index_2b(code_2b(p, a, pi), f1, f2)
    x, class_of = tables["label_x"][w0], tables["class_of"]
    c = class_of[x, tables["label_a"][w0]] << 1 | tables["weight"][m0] & 1
    b = class_of[x, a] << 1 | pi
    f = (w0 & 1) << 3 | _minus_bits(m0, w0, 3)
    s1, s2 = _minus_bits(m1, w1, 1), _minus_bits(m2, w2, 1)
    mixed = index_2c(labelled_code(x - 1, p, c), b, f, s1, s2)
    return torch.where(first == 8, full, torch.where(first == 0, empty, mixed))


def _rank_3(vectors: Tensor) -> Tensor:
    tables = _tables()
    large = vectors.abs() == 3
    place = large.to(torch.uint8).argmax(1)
    p = place // 8
    minus = (vectors < 0) ^ large
    words = (minus.view(-1, 3, 8) * (1 << torch.arange(8))).sum(2)
    words = words.gather(1, (p[:, None] + torch.arange(3)) % 3)
    x, (c, b, _) = tables["label_x"][words[:, 0]], tables["label_a"][words].unbind(1)
    s = ((words & 1) << torch.tensor([2, 1, 0])).sum(1)
    return index_3(labelled_code(x, p, c), b, s, place % 8)


def _rank_4(vectors: Tensor) -> Tensor:
    i, j = (vectors != 0).to(torch.uint8).topk(2, dim=1).indices.sort(dim=1).values.unbind(1)
    row = torch.arange(len(vectors))
    return index_4(i, j, (vectors[row, i] < 0).long(), (vectors[row, j] < 0).long())


def rank(vectors: Tensor) -> Tensor:
    """Code indices `(...)` int64 of integer vectors `(..., 24)`: the inverse of `unrank`.

    Raises:
        ValueError: a floating dtype, a last dimension other than 24, or a vector that is no code.
    """
    if vectors.is_floating_point():
        raise ValueError(f"vectors must have an integer dtype, got {vectors.dtype}")
    if vectors.ndim == 0 or vectors.shape[-1] != DIM:
        raise ValueError(f"vectors must be (..., {DIM}), got {tuple(vectors.shape)}")
    flat = vectors.detach().reshape(-1, DIM).to("cpu", torch.int64)
    largest = flat.abs().amax(1) if len(flat) else flat.new_empty(0)
    indices = torch.full((len(flat),), -1)
    for size, encode in ((2, _rank_2), (3, _rank_3), (4, _rank_4)):
        rows = (largest == size).nonzero()[:, 0]
        if len(rows):
            indices[rows] = encode(flat[rows])
    # The closed forms read no more than tells codes apart; decoding tells codes from the rest.
    known = (indices >= 0) & (indices < NUM_CODES)
    exact = known & (unrank(indices.where(known, 0)) == flat).all(1)
    if not bool(exact.all()):
        wrong = int((~exact).nonzero()[0, 0])
        raise ValueError(
            f"vector {wrong} is not one of the {NUM_CODES} codes: {flat[wrong].tolist()}"
        )
    return indices.view(vectors.shape[:-1]).to(vectors.device)

"""Row numbers of the sums over bricks: where words, classes and their matches stand.

A brick has 512 rows of words, (type, component, parity, high half, low half), and 257 of classes;
see `brick_sums` for what they hold. All tables come from the Golay code alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lambda24.tokenizer.lattices import golay

NUM_VALUES = 9  # coordinate v in -4..4 is column v + 4
ZERO_ROW = NUM_VALUES  # an appended row of zeros
# Per (T, S, state). Type 2: off or on the support; even, then odd. Type 3: +1 or -1; plain, then
# times -3.
LEAF_VALUES = (4, 6, ZERO_ROW, 2, 5, 3, 1, 7)

# Rows of a brick's classes, 8 for each x: small and large of type 2 (pairs; tetrads) and of type 3
# (plain; one coordinate times -3), then what x = 0 of type 2 and type 4 need.
NUM_X = 15
SMALL, LARGE = slice(0, 8 * NUM_X), slice(8 * NUM_X, 16 * NUM_X)
TETRADS_AND_FOUR = slice(240, 255)  # 14 tetrad classes of x = 0, then one coordinate +-4
FOUR, EMPTY, FULL = 254, 255, 256  # FULL: eight coordinates +-2, or two coordinates +-4
NUM_ROWS = 257


@dataclass(frozen=True)
class BrickTables:
    """Row numbers, see `brick_tables`."""

    leaves: Tensor  # (8,) rows of the values
    half_words: Tensor  # (16,) half-brick words, even ones first
    half_inverse: Tensor
    first: Tensor  # (257,) class -> word row of a brick
    second: Tensor  # (198,) complement word of the classes 56..253
    class_of: Tensor  # (512,) word row -> class, 257 where no class uses it
    next_brick: Tensor  # (3 * 240,) rows of brick q1 for each brick p
    windows: Tensor  # (3 * 810,) rows of brick q2, arranged so that exclusive-or is a window


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # cached tensors must serve training too
def brick_tables(device: torch.device) -> BrickTables:
    halves = sorted(range(16), key=lambda half: (golay.parity(half), half))
    rank = [halves.index(half) for half in range(16)]
    first, second = _class_words(rank)
    class_of = [NUM_ROWS] * 512
    for label, word in enumerate(first):
        if label != FOUR:
            class_of[word] = label
    for label, word in enumerate(second, start=56):
        class_of[word] = label
    merged = torch.arange(3 * NUM_ROWS).view(3, NUM_ROWS)[:, : LARGE.stop]
    merged = merged.reshape(3, 2, NUM_X, 2, 2, 2)
    window = torch.tensor([0, 1, 0])  # entry i + j is i ^ j
    windows = merged.roll(-2, 0).flip(1)[..., window, :, :][..., window, :][..., window]
    columns = LEAF_VALUES, halves, rank, first, second, class_of
    tensors = [torch.tensor(column, device=device) for column in columns]
    rows = [part.flatten().to(device) for part in (merged.roll(-1, 0), windows)]
    return BrickTables(*tensors, *rows)


def _class_words(rank: list[int]) -> tuple[list[int], list[int]]:
    """Word rows of each class of a brick, and those of the complements of classes 56..253."""

    def row(kind: int, component: int, word: int) -> int:  # (T, S, parity, high half, low half)
        high, low = divmod(word, 16)
        block = (2 * kind + component) * 2 + golay.parity(low)
        return block * 64 + rank[high] % 8 * 8 + rank[low] % 8

    def support(coordinates: tuple[int, ...]) -> int:
        return sum(1 << k for k in coordinates)

    some_x, labels = range(1, 8), range(8)
    words = [golay.brick_word(x, a) for x in labels for a in labels]
    pairs = [(b & 1, support(golay.pair(x, b >> 1))) for x in some_x for b in labels]
    tetrads = [(c & 1, support(golay.tetrad(x, c >> 1, 0))) for x in some_x for c in labels]
    zero_x = [(c & 1, support(golay.tetrad(0, c >> 1, 0))) for c in range(14)]
    summed = [(1, 0, word) for word in words]
    summed += [(0, parity, word) for parity, word in tetrads]
    summed += [(1, 1, word) for word in words]
    summed += [(0, parity, word) for parity, word in zero_x]
    single = [(0, parity, word) for parity, word in pairs]
    ends = [(0, 0, 0x00), (0, 0, 0x00), (0, 0, 0xFF)]  # FOUR is not a word: a placeholder
    first = [row(*place) for place in (*single, *summed, *ends)]
    second = [row(kind, component, word ^ 0xFF) for kind, component, word in summed]
    return first, second

"""The log normaliser of the lattice softmax and its gradient, the marginals, by sums over bricks.

p(c) is proportional to exp(sum_i l_i(c_i)) over the 196,560 minimal vectors of the Leech lattice.
With weights e = exp(l - max l) the normaliser is a polynomial in 24 x 9 non-negative numbers,
evaluated with about 10,000 products and sums a token: no subtraction, nothing of size 196,560.
The weights of the eight coordinates of a brick multiply up pairwise into tables over its 128 even
words, in two algebras of pairs:
    type 2 (word = support): (even, odd) number of minus signs,  (a, b)(c, d) = (ac + bd, ad + bc);
    type 3 (word = signs): (no, one) coordinate times -3,  (a, b)(c, d) = (ac, ad + bc).
Golay words (x; a, b, a ^ b) join the bricks: both types end in exclusive-or convolutions over eight
classes for each x. Rows are features and columns tokens, so every operation is a long vector one.

Shape letters: T type (2 or 3), S component of the pair, P brick, n tokens of a chunk.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tokenizer.lattices import golay

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


class Scratch:
    """Buffers by name, reused from chunk to chunk: fresh memory costs more than the arithmetic."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != shape:
            buffer = self._buffers[name] = self._like.new_empty(shape)
        return buffer


@dataclass(frozen=True)
class Tables:
    """Row numbers, see `_tables`."""

    leaves: Tensor  # (8,) rows of the values
    half_words: Tensor  # (16,) half-brick words, even ones first
    half_inverse: Tensor
    first: Tensor  # (257,) class -> word row of a brick
    second: Tensor  # (198,) complement word of the classes 56..253
    class_of: Tensor  # (512,) word row -> class, 257 where no class uses it
    next_brick: Tensor  # (3 * 240,) rows of brick q1 for each brick p
    windows: Tensor  # (3 * 810,) rows of brick q2, arranged so that exclusive-or is a window


def log_partition(scores: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Log normaliser and marginals of the lattice softmax, in the linear domain.

    Args:
        scores: `(N, 24, 9)` finite, float32 or float64.
        chunk_size: tokens per block.

    Returns:
        log_z `(N,)` and marginals p(c_i = v) `(N, 24, 9)`, the gradient of log_z. log_z is NaN
        where the best code lies so far below the coordinates' own maxima that sums could underflow:
        about 57 nats in float32, 460 in float64.
    """
    log_z = scores.new_empty(len(scores))
    marginals = torch.empty_like(scores)
    scratch = Scratch(scores)
    smallest = torch.finfo(scores.dtype).tiny ** 0.66
    for start in range(0, len(scores), chunk_size):
        rows = slice(start, start + chunk_size)
        peak = scores[rows].amax(2, keepdim=True)
        weights = scratch("weights", NUM_VALUES, 24, len(peak))
        torch.sub(scores[rows].permute(2, 1, 0), peak.permute(2, 1, 0), out=weights).exp_()
        total, gradient = _partition(weights, scratch)
        gradient.mul_(weights).div_(total)
        marginals[rows] = gradient.permute(2, 1, 0)
        log_z[rows] = torch.where(total > smallest, total.log() + peak.sum((1, 2)), torch.nan)
    return log_z, marginals


def _partition(weights: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """Sum over all codes of the product of `weights (9, 24, n)`, `(n,)`, and its gradient."""
    n = weights.shape[-1]
    tables = _tables(weights.device)
    values = torch.cat([weights, weights.new_zeros(1, 24, n)])
    leaves = values.index_select(0, tables.leaves).view(2, 2, 2, 3, 8, n)
    singles = leaves.permute(3, 0, 1, 4, 2, 5)  # (P, T, S, coordinate, state, n)
    pairs = _merge(
        singles[:, :, :, 1::2], singles[:, :, :, ::2], scratch("pairs", 3, 2, 2, 4, 4, n)
    )
    halves = _merge(pairs[:, :, :, 1::2], pairs[:, :, :, ::2], scratch("halves", 3, 2, 2, 2, 16, n))
    by_parity = halves.index_select(4, tables.half_words).unflatten(4, (2, 8))
    low, high = by_parity.unbind(3)  # (P, T, S, parity, state, n)
    words = _merge(high, low, scratch("words", 3, 2, 2, 2, 64, n)).view(3, 512, n)
    fours = _truncated_products(torch.stack([weights[4], weights[0] + weights[8]]))

    classes = words.index_select(1, tables.first)
    classes[:, 56:254] += words.index_select(1, tables.second)
    classes[:, FOUR] = fours[-1][1, :, 0]
    classes[:, FULL] += fours[-1][2, :, 0]
    total, grad = _join_bricks(classes, tables, scratch)

    padded = torch.cat([grad, grad.new_zeros(3, 1, n)], 1)
    grad_words = padded.index_select(1, tables.class_of).view(3, 2, 2, 2, 64, n)
    grad_high, grad_low = _merge_backward(grad_words, high, low, scratch)
    grad_halves = torch.stack([grad_low, grad_high], 3).flatten(4, 5)
    grad_halves = grad_halves.index_select(4, tables.half_inverse)
    grad_pairs = _backward_to_parts(grad_halves, pairs, scratch)
    grad_singles = _backward_to_parts(grad_pairs, singles, scratch)
    gradient = values.zero_()
    gradient.index_add_(0, tables.leaves, grad_singles.permute(1, 2, 4, 0, 3, 5).reshape(8, 24, n))
    grad_zero, grad_four, _ = _truncated_backward(grad[:, FOUR], grad[:, FULL], fours)
    gradient[4] += grad_zero
    gradient[0] += grad_four
    gradient[8] += grad_four
    return total, gradient[:NUM_VALUES]


def _two_by_two(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbouring parts, `(P, T, S, 2k, a, n)` -> high and low `(P, T, S, k, a, n)`."""
    return parts[:, :, :, 1::2], parts[:, :, :, ::2]


def _merge(high: Tensor, low: Tensor, out: Tensor) -> Tensor:
    """Products of all states of two parts, `(P, T, S, k, a | b, n)` -> `(P, T, S, k, ab, n)`."""
    products = out.unflatten(4, (high.shape[4], low.shape[4]))
    high, low = high.unsqueeze(5), low.unsqueeze(4)
    torch.mul(high[:, :, :1], low, out=products)
    products[:, :, 1].addcmul_(high[:, :, 1], low[:, :, 0])
    products[:, 0, 0].addcmul_(high[:, 0, 1], low[:, 0, 1])
    return out


def _merge_backward(
    grad: Tensor, high: Tensor, low: Tensor, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    grad = grad.unflatten(4, (high.shape[4], low.shape[4]))
    grad_high, grad_low = torch.empty_like(high), torch.empty_like(low)
    product = scratch(f"product{grad.shape[4]}", *grad[:, :, 0].shape)
    for result, other, axis in ((grad_high, low.unsqueeze(4), 4), (grad_low, high.unsqueeze(5), 3)):
        torch.mul(grad[:, :, 0], other[:, :, 0], out=product)
        product.addcmul_(grad[:, :, 1], other[:, :, 1])
        torch.sum(product, axis, out=result[:, :, 0])
        torch.mul(grad[:, :, 1], other[:, :, 0], out=product)
        product[:, 0].addcmul_(grad[:, 0, 0], other[:, 0, 1])
        torch.sum(product, axis, out=result[:, :, 1])
    return grad_high, grad_low


def _backward_to_parts(grad: Tensor, parts: Tensor, scratch: Scratch) -> Tensor:
    """Gradient of the parts that were merged two by two, `(P, T, S, 2k, a, n)`."""
    grad_high, grad_low = _merge_backward(grad, *_two_by_two(parts), scratch)
    return torch.stack([grad_low, grad_high], 4).flatten(3, 4)


def _truncated_products(weights: Tensor) -> list[Tensor]:
    """Per brick, coefficients of t^0, t^1, t^2 of the product of (weights[0] + weights[1] t).

    Args:
        weights: `(2, 24, n)`, of the values 0 and +-4.

    Returns:
        The products of 1, 2, 4 and 8 coordinates, `(3, P, k, n)`: type 4 has two coordinates +-4.
    """
    zeros = torch.zeros_like(weights[:1])
    levels = [torch.cat([weights, zeros]).unflatten(1, (3, 8))]
    while levels[-1].shape[2] > 1:
        left, right = levels[-1][:, :, ::2], levels[-1][:, :, 1::2]
        product = left[:1] * right
        product[1:].addcmul_(left[1:2], right[:2])
        product[2:].addcmul_(left[2:], right[:1])
        levels.append(product)
    return levels


def _truncated_backward(grad_one: Tensor, grad_two: Tensor, levels: list[Tensor]) -> Tensor:
    """Gradient `(3, 24, n)` of the leaves from that of t^1 and t^2, each `(P, n)`."""
    grad = torch.stack([torch.zeros_like(grad_one), grad_one, grad_two]).unsqueeze(2)
    for level in reversed(levels[:-1]):
        below = torch.empty_like(level)
        for first in range(2):
            mine, factor = below[:, :, first::2], level[:, :, 1 - first :: 2]
            torch.sum(grad * factor, 0, out=mine[0])
            torch.sum(grad[1:] * factor[:2], 0, out=mine[1])
            torch.mul(grad[2], factor[0], out=mine[2])
        grad = below
    return grad.flatten(1, 2)


def _join_bricks(classes: Tensor, tables: Tables, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """Sum over all codes from the bricks' classes `(P, 257, n)`, `(n,)`, and its gradient.

    With q1, q2 the bricks after p, every code has a large class on one brick p and small ones on q1
    and q2 whose labels match, or is of type 4, or has x = 0 in type 2.
    """
    n = classes.shape[-1]
    grad = torch.empty_like(classes)
    merged = classes[:, : LARGE.stop].reshape(3 * 240, n)
    next_brick = merged.index_select(0, tables.next_brick).view(3, 2, NUM_X, 2, 2, 2, 1, 1, 1, n)
    windows = merged.index_select(0, tables.windows).view(3, 2, NUM_X, 3, 3, 3, n)
    joined = scratch("joined", 3, 2, NUM_X, 2, 2, 2, n).zero_()
    small, large = next_brick.unbind(1)
    for i, j, k in itertools.product(range(2), repeat=3):
        # Label c of brick p, label (i, j, k) of q1, their exclusive-or on q2.
        matching = windows[:, :, :, i : i + 2, j : j + 2, k : k + 2]
        joined.addcmul_(small[:, None, :, i, j, k], matching)
        joined[:, 0].addcmul_(large[:, :, i, j, k], matching[:, 1])
    grad[:, : LARGE.stop] = joined.view(3, 240, n)
    total = (classes[:, LARGE] * grad[:, LARGE]).sum((0, 1))

    (_, empty, full), (tetrads1, empty1, full1), (tetrads2, empty2, full2) = (
        (bricks[:, TETRADS_AND_FOUR], bricks[:, EMPTY], bricks[:, FULL])
        for bricks in (classes, classes.roll(-1, 0), classes.roll(-2, 0))
    )
    grad[:, TETRADS_AND_FOUR] = empty1[:, None] * tetrads2 + tetrads1 * empty2[:, None]
    grad[:, FULL] = empty1 * empty2
    both = (tetrads1 * tetrads2).sum(1)
    grad[:, EMPTY] = both + full1 * empty2 + empty1 * full2
    return total + (full * grad[:, FULL] + empty * both).sum(0), grad


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # cached tensors must serve training too
def _tables(device: torch.device) -> Tables:
    halves = sorted(range(16), key=lambda half: (golay.parity(half), half))
    rank = [halves.index(half) for half in range(16)]
    first, second = _class_words(rank)
    class_of = [NUM_ROWS] * 512
    for label, word in enumerate(first):
        if label != FOUR:
            class_of[word] = label
    for label, word in enumerate(second, start=56):
        class_of[word] = label
    merged = torch.arange(3 * 240).view(3, 2, NUM_X, 2, 2, 2)
    window = torch.tensor([0, 1, 0])  # entry i + j is i ^ j
    windows = merged.roll(-2, 0).flip(1)[..., window, :, :][..., window, :][..., window]
    columns = LEAF_VALUES, halves, rank, first, second, class_of
    tensors = [torch.tensor(column, device=device) for column in columns]
    rows = [part.flatten().to(device) for part in (merged.roll(-1, 0), windows)]
    return Tables(*tensors, *rows)


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

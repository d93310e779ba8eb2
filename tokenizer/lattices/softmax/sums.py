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

import torch
from torch import Tensor

from lambda24.tokenizer.lattices.softmax.tables import (
    EMPTY,
    FOUR,
    FULL,
    LARGE,
    NUM_ROWS,
    NUM_VALUES,
    NUM_X,
    SMALL,
    TETRADS_AND_FOUR,
    ZERO_ROW,
    brick_tables,
)

# Added to all scores: the largest sum of products, 196,560 exp(24 boost), stays below the largest
# number by a factor of 1e6, and the smaller ones are as far as can be from underflow.
BOOST = {torch.float32: 2.5, torch.float64: 28.0}


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


def log_partition(
    scores: Tensor, chunk_size: int, *, with_marginals: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Log normaliser and marginals of the lattice softmax, in the linear domain.

    Args:
        scores: `(N, 24, 9)` finite, float32 or float64.
        chunk_size: tokens per block.
        with_marginals: costs twice as much again.

    Returns:
        log_z `(N,)` and marginals p(c_i = v) `(N, 24, 9)`, the gradient of log_z. log_z is NaN
        where the best code lies so far below the coordinates' own maxima that sums could underflow:
        about 117 nats in float32, 1,130 in float64.
    """
    log_z = scores.new_empty(len(scores))
    marginals = torch.empty_like(scores) if with_marginals else None
    scratch = Scratch(scores)
    smallest = torch.finfo(scores.dtype).tiny ** 0.66
    boost = BOOST[scores.dtype]
    for start in range(0, len(scores), chunk_size):
        rows = slice(start, start + chunk_size)
        peak = scores[rows].amax(2, keepdim=True)
        values = scratch("values", NUM_VALUES + 1, 24, len(peak))
        values[ZERO_ROW] = 0
        weights = values[:NUM_VALUES]
        lowered = (peak - boost).permute(2, 1, 0)
        torch.sub(scores[rows].permute(2, 1, 0), lowered, out=weights).exp_()
        sums = _sum_over_codes(values, scratch)
        total = sums.total
        log_z[rows] = torch.where(
            total > smallest, total.log() + (peak - boost).sum((1, 2)), torch.nan
        )
        if marginals is not None:
            gradient = _gradient(sums, scratch).mul_(weights).div_(total)
            marginals[rows] = gradient.permute(2, 1, 0)
    return log_z, marginals


@dataclass(frozen=True)
class _Sums:
    """What the gradient needs of the products and sums of n tokens."""

    singles: Tensor  # (P, T, S, 8, 2, n) weights of one coordinate, by state
    pairs: Tensor  # (P, T, S, 4, 4, n) of two neighbours
    halves: Tensor  # (P, T, S, 2, parity, 8, n) of four
    fours: list[Tensor]  # see `_truncated_products`
    classes: Tensor  # (P, 257, n)
    next_classes: Tensor  # (P, 2, 15, 2, 2, 2, n) small and large ones of brick q1
    windows: Tensor  # (P, 2, 15, 3, 3, 3, n) large and small ones of brick q2, to be cut out
    partners: Tensor  # (P, 120, n) what multiplies a large class
    total: Tensor  # (n,)


def _sum_over_codes(values: Tensor, scratch: Scratch) -> _Sums:
    """Sum over all codes of the product of `values (10, 24, n)`."""
    n = values.shape[-1]
    tables = brick_tables(values.device)
    leaves = values.index_select(0, tables.leaves).view(2, 2, 2, 3, 8, n)
    singles = leaves.permute(3, 0, 1, 4, 2, 5)
    pairs = _merge(*_two_by_two(singles), scratch("pairs", 3, 2, 2, 4, 4, n))
    fours = _merge(*_two_by_two(pairs), scratch("halves", 3, 2, 2, 2, 16, n))
    halves = fours.index_select(4, tables.half_words).unflatten(4, (2, 8))
    low, high = halves.unbind(3)
    words = _merge(high, low, scratch("words", 3, 2, 2, 2, 64, n)).view(3, 512, n)
    truncated = _truncated_products(torch.stack([values[4], values[0] + values[8]]))

    classes = scratch("classes", 3, NUM_ROWS, n)
    torch.index_select(words, 1, tables.first, out=classes)
    second = scratch("second", 3, len(tables.second), n)
    classes[:, 56:254] += torch.index_select(words, 1, tables.second, out=second)
    classes[:, FOUR] = truncated[-1][1, :, 0]
    classes[:, FULL] += truncated[-1][2, :, 0]

    rows = classes.view(3 * NUM_ROWS, n)
    next_classes = scratch("next", 3, 2, NUM_X, 2, 2, 2, n)
    torch.index_select(rows, 0, tables.next_brick, out=next_classes.view(720, n))
    windows = scratch("windows", 3, 2, NUM_X, 3, 3, 3, n)
    torch.index_select(rows, 0, tables.windows, out=windows.view(2430, n))
    partners = scratch("partners", 3, NUM_X, 2, 2, 2, n)
    _add_matching(partners, next_classes[:, 0], windows[:, 1], is_first=True)
    partners = partners.view(3, 120, n)
    total = (classes[:, LARGE] * partners).sum((0, 1)) + _sum_of_rest(classes)
    return _Sums(singles, pairs, halves, truncated, classes, next_classes, windows, partners, total)


def _gradient(sums: _Sums, scratch: Scratch) -> Tensor:
    """Gradient of `sums.total` for the weights of all values, `(9, 24, n)`."""
    n = len(sums.total)
    tables = brick_tables(sums.total.device)
    grad = scratch("grad", 3, NUM_ROWS + 1, n)
    grad[:, NUM_ROWS] = 0  # of words in no class
    grad[:, LARGE] = sums.partners
    small = grad[:, SMALL].unflatten(1, (NUM_X, 2, 2, 2))
    _add_matching(small, sums.next_classes[:, 0], sums.windows[:, 0], is_first=True)
    _add_matching(small, sums.next_classes[:, 1], sums.windows[:, 1], is_first=False)
    _gradient_of_rest(sums.classes, grad)

    grad_words = scratch("grad_words", 3, 512, n)
    torch.index_select(grad, 1, tables.class_of, out=grad_words)
    grad_halves = scratch("grad_halves", *sums.halves.shape)
    low, high = sums.halves.unbind(3)
    grad_low, grad_high = grad_halves.unbind(3)
    _merge_backward(grad_words.view(3, 2, 2, 2, 64, n), high, low, grad_high, grad_low, scratch)
    grad_parts = grad_halves.flatten(4, 5).index_select(4, tables.half_inverse)
    for name, parts in (("grad_pairs", sums.pairs), ("grad_singles", sums.singles)):
        below = scratch(name, *parts.shape)
        _merge_backward(grad_parts, *_two_by_two(parts), *_two_by_two(below), scratch)
        grad_parts = below

    gradient = scratch("gradient", NUM_VALUES + 1, 24, n)
    gradient[tables.leaves] = grad_parts.permute(1, 2, 4, 0, 3, 5).reshape(8, 24, n)
    grad_zero, grad_four, _ = _truncated_backward(grad[:, FOUR], grad[:, FULL], sums.fours)
    gradient[4] += grad_zero
    gradient[0] = grad_four
    gradient[8] = grad_four
    return gradient[:NUM_VALUES]


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
    grad: Tensor, high: Tensor, low: Tensor, grad_high: Tensor, grad_low: Tensor, scratch: Scratch
) -> None:
    """Writes the gradients of both factors of `_merge`."""
    grad = grad.unflatten(4, (high.shape[4], low.shape[4]))
    product = scratch(f"product{grad.shape[4]}", *grad[:, :, 0].shape)
    for result, other, axis in ((grad_high, low.unsqueeze(4), 4), (grad_low, high.unsqueeze(5), 3)):
        torch.mul(grad[:, :, 0], other[:, :, 0], out=product)
        product.addcmul_(grad[:, :, 1], other[:, :, 1])
        torch.sum(product, axis, out=result[:, :, 0])
        torch.mul(grad[:, :, 1], other[:, :, 0], out=product)
        product[:, 0].addcmul_(grad[:, 0, 0], other[:, 0, 1])
        torch.sum(product, axis, out=result[:, :, 1])


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


def _add_matching(out: Tensor, labels: Tensor, windows: Tensor, *, is_first: bool) -> None:
    """Exclusive-or convolution: out[c] = (out[c] +) sum over b of labels[b] windows[b ^ c].

    Args:
        out: `(P, 15, 2, 2, 2, n)`, c in binary.
        labels: `(P, 15, 2, 2, 2, n)`.
        windows: `(P, 15, 3, 3, 3, n)`: entry i + j of an axis belongs to the bit i ^ j.
        is_first: overwrite `out`.
    """
    for i, j, k in itertools.product(range(2), repeat=3):
        label = labels[:, :, i, j, k, None, None, None]
        matching = windows[:, :, i : i + 2, j : j + 2, k : k + 2]
        if is_first and not (i or j or k):
            torch.mul(label, matching, out=out)
        else:
            out.addcmul_(label, matching)


def _rest_of(classes: Tensor, turn: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tetrads (and one coordinate +-4), empty and full of the brick `turn` after each."""
    rest = classes[:, LARGE.stop :].roll(-turn, 0)
    return rest[:, :-2], rest[:, -2], rest[:, -1]


def _sum_of_rest(classes: Tensor) -> Tensor:
    """Codes of type 4 or with x = 0 in type 2: one brick full, or one empty and two that match."""
    _, empty, full = _rest_of(classes, 0)
    tetrads1, empty1, _ = _rest_of(classes, 1)
    tetrads2, empty2, _ = _rest_of(classes, 2)
    return (full * empty1 * empty2 + empty * (tetrads1 * tetrads2).sum(1)).sum(0)


def _gradient_of_rest(classes: Tensor, grad: Tensor) -> None:
    tetrads1, empty1, full1 = _rest_of(classes, 1)
    tetrads2, empty2, full2 = _rest_of(classes, 2)
    grad[:, TETRADS_AND_FOUR] = empty1[:, None] * tetrads2 + tetrads1 * empty2[:, None]
    grad[:, EMPTY] = (tetrads1 * tetrads2).sum(1) + full1 * empty2 + empty1 * full2
    grad[:, FULL] = empty1 * empty2

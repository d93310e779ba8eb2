"""How fast this machine adds at best: the limits that searches are measured against."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lambda24.scripts.benchmarks.timing import Clock, Run, seconds_of
from lambda24.tokenizer.lattices.search.nearest import has_kernel

_CHAINS, _TURNS = 12, 100_000


@dataclass(frozen=True)
class Speed:
    """Best float32 rates of all threads together, a second."""

    in_cache: float  # additions and maxima by PyTorch, operands and results in the L2 cache
    product: float  # floating-point operations of a large matrix product
    in_registers: float | None  # compiled additions and maxima; None without numba

    def __str__(self) -> str:
        registers = self.in_registers
        compiled = "" if registers is None else f", {registers / 1e9:.0f} G/s compiled in registers"
        return (
            f"this machine: {self.in_cache / 1e9:.1f} G/s float32 additions and maxima in PyTorch"
            f"{compiled}, {self.product / 1e9:.0f} GFLOP/s matrix product"
        )


@lru_cache(maxsize=1)
def _compiled_chains() -> Any:
    import numba
    import numpy as np

    from lambda24.tokenizer.lattices.search.simd import add, load, maximum, store

    @numba.njit(nogil=True)
    def chains(rows: np.ndarray) -> None:
        """Independent chains, enough to fill the pipelines of two units of latency four."""
        step, floor = load(rows, 12), load(rows, 13)
        a, b, c, d = load(rows, 0), load(rows, 1), load(rows, 2), load(rows, 3)
        e, f, g, h = load(rows, 4), load(rows, 5), load(rows, 6), load(rows, 7)
        i, j, k, m = load(rows, 8), load(rows, 9), load(rows, 10), load(rows, 11)
        for _ in range(_TURNS):
            a, b = maximum(add(a, step), floor), maximum(add(b, step), floor)
            c, d = maximum(add(c, step), floor), maximum(add(d, step), floor)
            e, f = maximum(add(e, step), floor), maximum(add(f, step), floor)
            g, h = maximum(add(g, step), floor), maximum(add(h, step), floor)
            i, j = maximum(add(i, step), floor), maximum(add(j, step), floor)
            k, m = maximum(add(k, step), floor), maximum(add(m, step), floor)
        store(rows, 0, add(add(add(a, b), add(c, d)), add(add(e, f), add(g, h))))
        store(rows, 1, add(add(i, j), add(k, m)))

    return chains


def _rate(run: Run, operations: float, clock: Clock) -> float:
    run()
    return operations / min(seconds_of(run, clock, at_least=0.05) for _ in range(5))


def measure_speed(clock: Clock) -> Speed:
    """Takes about two seconds, and two more to compile where numba is installed."""
    threads = torch.get_num_threads()
    size = 32_768 * threads  # one piece a thread; three of them fill 384 kB
    x, y, out = torch.rand(3, size)

    def elementwise() -> None:
        torch.add(x, y, out=out)
        torch.maximum(x, y, out=out)

    matrix, product = torch.rand(1024, 1024), torch.empty(1024, 1024)
    registers = None
    if has_kernel():
        from lambda24.tokenizer.lattices.search.simd import LANES

        rows = [torch.zeros(16 * LANES).numpy() for _ in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            operations = 2.0 * _CHAINS * LANES * _TURNS * threads
            chains = _compiled_chains()
            registers = _rate(lambda: list(pool.map(chains, rows)), operations, clock)
    return Speed(
        in_cache=_rate(elementwise, 2.0 * size, clock),
        product=_rate(lambda: torch.mm(matrix, matrix, out=product), 2.0 * 1024**3, clock),
        in_registers=registers,
    )


class CountElements(TorchDispatchMode):
    """Counts the elements that operations go through: of their largest tensor, views aside."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.name():
            tensors = [t for t in (*args, *(kwargs or {}).values(), out) if isinstance(t, Tensor)]
            self.total += max((t.numel() for t in tensors), default=0)
        return out

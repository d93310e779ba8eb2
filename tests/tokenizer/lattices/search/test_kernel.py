from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from lambda24.tokenizer.lattices import codes, leech, released
from lambda24.tokenizer.lattices.search import nearest as leech_search

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """More than one piece and thread, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _vectors(count: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(count)
    table = leech.codebook().float()

    def some() -> Tensor:
        return table[torch.randint(0, leech.NUM_CODES, (count,), generator=g)]

    normal = torch.randn(4, count, 24, generator=g)
    return {
        "gaussian": normal[0],
        "near a code": some() + 0.3 * normal[1],
        "between two codes": some() + some() + 1e-6 * normal[2],
        "heavy-tailed": normal[0] / normal[3],
        "sparse": normal[1] * (torch.rand(count, 24, generator=g) < 0.2),
        "one or two coordinates": normal[2] * (torch.rand(count, 24, generator=g) < 0.06),
        "exact ties": torch.randint(-2, 3, (count, 24), generator=g).float(),
        "sums of codes": some() + some(),
    }


def test_indices_are_those_of_the_eager_search() -> None:
    starts, families = torch.tensor([384, 11_136, 97_152, 195_456]), set()
    for name, z in _vectors(2000).items():
        found = leech.nearest(z, method="kernel")
        assert torch.equal(found, leech.nearest(z, method="eager")), name
        families |= set(torch.bucketize(found, starts, right=True).tolist())
    assert len(families) == 5  # every branch of the decoder has been taken


def test_every_code_is_nearest_to_itself() -> None:
    rows = torch.arange(leech.NUM_CODES)
    assert torch.equal(leech.nearest(leech.unrank(rows).float(), method="kernel"), rows)


@pytest.mark.parametrize("shape", [(24,), (0, 24), (3, 0, 24), (1, 24), (15, 24), (2, 1025, 24)])
def test_any_number_of_vectors(shape: tuple[int, ...]) -> None:
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = leech.nearest(z, method="kernel")
    assert found.shape == shape[:-1]
    assert found.dtype == torch.int64
    assert torch.equal(found, leech.nearest(z, method="eager"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    z = torch.randn(500, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(leech.nearest(z, method="kernel"), leech.nearest(z, method="eager"))


def test_zero_layout_gradients_and_inference_mode() -> None:
    assert leech.nearest(torch.zeros(2, 24), method="kernel").tolist() == [0, 0]
    z = torch.randn(300, 24, generator=torch.Generator().manual_seed(2))
    expected = leech.nearest(z, method="eager")
    assert torch.equal(leech.nearest(z.t().contiguous().t(), method="kernel"), expected)
    assert torch.equal(leech.nearest(z.requires_grad_(), method="kernel"), expected)
    with torch.inference_mode():
        assert torch.equal(leech.nearest(z * 1, method="kernel"), expected)
    with pytest.raises(ValueError, match="finite"):
        leech.nearest(torch.full((1, 24), torch.inf), method="kernel")


def test_some_groups_and_other_frames() -> None:
    z = _vectors(1000)["near a code"]
    for shape in (2, 3, 4):
        start, stop = leech.TYPE_RANGES[shape]
        args = (z, z, leech_search.GROUPS_OF_TYPE[shape])
        found = leech_search.search(*args, method="kernel")
        assert ((found >= start) & (found < stop)).all()
        assert torch.equal(found, leech_search.search(*args, method="eager"))
        assert torch.equal(found - start, codes.LeechCode(shape).nearest(z))
    eager = released.nearest(z, method="eager")
    assert torch.equal(released.nearest(z, method="kernel"), eager)


def test_it_is_the_default_for_float32_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def kernel(type2: Tensor, type3: Tensor, groups: tuple[int, int]) -> Tensor:
        calls.append(type2.dtype)
        return torch.zeros(len(type2), dtype=torch.int64)

    monkeypatch.setattr(leech_search, "_kernel", lambda: kernel)
    z = torch.zeros(2, 24)
    leech.nearest(z)
    leech.nearest(z.bfloat16())
    leech.nearest(z.double())
    leech.nearest(z, method="eager")
    assert calls == [torch.float32, torch.float32]
    monkeypatch.setattr(leech_search, "_kernel", lambda: None)
    assert leech.nearest(z).tolist() == [0, 0]
    with pytest.raises(ValueError, match="numba not found"):
        leech.nearest(z, method="kernel")


def test_where_compiled_code_cannot_be_kept_the_search_is_eager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(**options: bool) -> None:
        raise RuntimeError("cannot cache function 'search': no locator available")

    assert leech_search.has_kernel()
    monkeypatch.setattr("lambda24.tokenizer.lattices.search.kernel_scores.compiled", refuse)
    monkeypatch.delitem(sys.modules, "lambda24.tokenizer.lattices.search.kernel")
    leech_search._kernel.cache_clear()
    try:
        assert not leech_search.has_kernel()
        assert leech.nearest(torch.zeros(2, 24)).tolist() == [0, 0]
    finally:
        leech_search._kernel.cache_clear()


def test_concurrent_callers() -> None:
    parts = torch.randn(6, 3000, 24, generator=torch.Generator().manual_seed(8))
    expected = [leech.nearest(z, method="eager") for z in parts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda z: leech.nearest(z, method="kernel"), parts))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def _in_child(z: list[list[float]]) -> list[int]:
    torch.set_num_threads(1)  # as data loaders do
    return leech.nearest(torch.tensor(z), method="kernel").tolist()


def test_forked_process_after_use() -> None:
    """As a data loader's worker after the parent has searched."""
    z = torch.randn(3000, 24, generator=torch.Generator().manual_seed(9))
    expected = leech.nearest(z, method="kernel").tolist()
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        assert pool.submit(_in_child, z.tolist()).result(timeout=60) == expected

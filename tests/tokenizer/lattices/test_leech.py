from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from lambda24.tokenizer.lattices import golay, leech
from lambda24.tokenizer.lattices.search.tile import NUM_GROUPS, Tile
from lambda24.tokenizer.lattices.search.traceback import traceback_all

NUM = 3000


@pytest.fixture(scope="module")
def codes() -> Tensor:
    return leech.codebook().float()


def _some_codes(codes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return codes[torch.randint(0, leech.NUM_CODES, (count,), generator=generator)]


def _midpoints(codes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Sums of two neighbouring codes: integer points on the boundary of their cells."""
    rows = torch.randint(0, leech.NUM_CODES, (count // 50,), generator=generator)
    near = torch.stack([leech.neighbors(int(row)) for row in rows])
    columns = torch.randint(0, leech.NUM_NEIGHBORS, (len(rows), 50), generator=generator)
    return (codes[rows][:, None] + codes[near.gather(1, columns)]).view(-1, 24)


def _distributions(codes: Tensor) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    normal = torch.randn(6, NUM, 24, generator=g)
    keep = torch.rand(NUM, 24, generator=g) < 0.2
    return {
        "gaussian": torch.randn(2 * NUM, 24, generator=g),
        "near a code": _some_codes(codes, NUM, g) + 0.3 * normal[0],
        "near a boundary": _midpoints(codes, NUM, g) + 1e-2 * normal[1],
        "near a corner": sum(_some_codes(codes, NUM, g) for _ in range(3)) + 0.1 * normal[2],
        "heavy-tailed": normal[3] / normal[4],
        "sparse": normal[5] * keep,
    }


def _best_score(z: Tensor) -> Tensor:
    """Largest inner product, from the definition of the three shapes, in float64."""
    words, octads = golay.codewords().double(), golay.octads().nonzero()[:, 1].view(-1, 8)
    brick_words = (golay.codewords().long().view(-1, 3, 8) << torch.arange(8)).sum(2)
    brick_signs = 1.0 - 2 * (torch.arange(256) >> torch.arange(8)[:, None] & 1)
    scores = []
    for rows in z.double().split(100):
        columns = rows.t().contiguous()  # (24, n)
        signed = columns.view(3, 8, 1, -1) * brick_signs[None, :, :, None]
        least = signed.amin(1)  # (3, 256, n): by brick and its sign pattern
        least = torch.stack([least[k][brick_words[:, k]] for k in range(3)]).amin(0)
        type3 = ((1 - 2 * words) @ columns - 4 * least).amax(0)
        part = columns[octads.t()]  # (8, 759, n)
        odd = (part < 0).double().sum(0) % 2
        type2 = 2 * (part.abs().sum(0) - 2 * odd * part.abs().amin(0)).amax(0)
        type4 = 4 * rows.abs().topk(2).values.sum(1)
        scores.append(torch.stack([type2, type3, type4]).amax(0))
    return torch.cat(scores)


def _brute_force(z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Best index and the gap to the second best, by the products with one of each pair ±c."""
    first = codes.gather(1, (codes != 0).to(torch.uint8).argmax(1, keepdim=True))[:, 0]
    half = (first > 0).nonzero()[:, 0]
    table = codes[half]
    indices, gaps = [], []
    for rows in z.split(250):
        scores = rows @ table.T
        size = scores.abs()
        best, column = size.max(1, keepdim=True)
        gaps.append(best[:, 0] - size.scatter_(1, column, -1.0).amax(1))
        plus = scores.gather(1, column)[:, 0] > 0
        negative = leech.rank(-table[column[:, 0]].to(torch.int8))
        indices.append(torch.where(plus, half[column[:, 0]], negative))
    return torch.cat(indices), torch.cat(gaps)


def test_nearest_has_the_largest_inner_product(codes: Tensor) -> None:
    cases = _distributions(codes)
    assert sum(len(z) for z in cases.values()) >= 20_000
    for name, z in cases.items():
        score = (z.double() * codes[leech.nearest(z, method="eager")]).sum(1)
        best = _best_score(z)
        assert (score >= best - 1e-6 * best).all(), name
        exact = (z.double() * codes[leech.nearest(z.double())]).sum(1)
        torch.testing.assert_close(exact, best, rtol=1e-12, atol=0, msg=name)


def test_nearest_is_the_index_of_brute_force(codes: Tensor) -> None:
    for name, z in _distributions(codes).items():
        z = z[:400]
        found = leech.nearest(z, method="eager")
        expected, gap = _brute_force(z, codes)
        clear = gap > 1e-5 * z.norm(dim=1)
        assert torch.equal(found[clear], expected[clear]), name
        assert clear.float().mean() > 0.85, name  # the comparison above must mean something


def test_exact_ties_go_to_the_lowest_index(codes: Tensor) -> None:
    g = torch.Generator().manual_seed(2)
    cases = {
        "boundaries": _midpoints(codes, 100, g),
        "sums of two": _some_codes(codes, 100, g) + _some_codes(codes, 100, g),
        "integers": torch.randint(-2, 3, (100, 24), generator=g).float(),
        "powers": 2.0 ** torch.randint(-3, 4, (100, 24), generator=g),
        "sparse": torch.randint(-1, 2, (100, 24), generator=g)
        * (torch.rand(100, 24, generator=g) < 0.2).float(),
        "axes": torch.cat([torch.eye(24), -torch.eye(24), torch.zeros(1, 24)]),
    }
    for name, z in cases.items():
        scores = z @ codes.T  # exact: small integers and powers of two
        best = scores.amax(1, keepdim=True)
        tied = scores == best
        assert (tied.sum(1) > 1).any(), name
        assert torch.equal(leech.nearest(z, method="eager"), tied.to(torch.uint8).argmax(1)), name


def test_every_code_is_nearest_to_itself() -> None:
    rows = torch.arange(0, leech.NUM_CODES, 7)
    assert torch.equal(leech.nearest(leech.unrank(rows).float()), rows)


@pytest.mark.parametrize("shape", [(24,), (0, 24), (3, 0, 24), (1, 24), (2, 3, 5, 24)])
def test_shapes(shape: tuple[int, ...]) -> None:
    z = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    indices = leech.nearest(z, method="eager")
    assert indices.shape == shape[:-1]
    assert indices.dtype == torch.int64
    assert torch.equal(indices.reshape(-1), leech.nearest(z.reshape(-1, 24)))


def test_zero_is_the_first_code() -> None:
    assert leech.nearest(torch.zeros(3, 24)).tolist() == [0, 0, 0]
    assert leech.nearest(-torch.zeros(24)).item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_are_computed_in_float32_or_better(dtype: torch.dtype) -> None:
    z = torch.randn(500, 24, generator=torch.Generator().manual_seed(4)).to(dtype)
    assert torch.equal(leech.nearest(z), leech.nearest(z.float()))
    # 2^-40 decides between two codes in float64 and vanishes in float32.
    tie = (leech.unrank(torch.tensor(5)) + leech.unrank(leech.neighbors(5)[0])).double()
    other = int(leech.neighbors(5)[0])
    for winner, loser in ((5, other), (other, 5)):
        nudge = (leech.unrank(torch.tensor(winner)) - leech.unrank(torch.tensor(loser))).double()
        assert leech.nearest(tie + 2.0**-40 * nudge).item() == winner


def test_chunks_and_neighbours_in_the_batch_do_not_matter() -> None:
    z = torch.randn(1000, 24, generator=torch.Generator().manual_seed(5))
    expected = leech.nearest(z, method="eager")
    for chunk_size in (1, 7, 385, 999, 5000):
        part = z if chunk_size > 1 else z[:20]
        found = leech.nearest(part, chunk_size=chunk_size, method="eager")
        assert torch.equal(found, expected[: len(part)])
    assert torch.equal(leech.nearest(z[::3], method="eager"), expected[::3])
    assert torch.equal(leech.nearest(z.t().contiguous().t(), method="eager"), expected)


def test_length_does_not_matter_however_large() -> None:
    z = torch.randn(200, 24, generator=torch.Generator().manual_seed(6))
    expected = leech.nearest(z)
    for scale in (2.0**120, 2.0**-120):
        assert torch.equal(leech.nearest(z * scale), expected)
    mixed = torch.cat([z * 2.0**120, z])
    assert torch.equal(leech.nearest(mixed), expected.repeat(2))


def test_autocast_does_not_matter() -> None:
    z = torch.randn(2000, 24, generator=torch.Generator().manual_seed(7))
    with torch.autocast("cpu", torch.bfloat16):
        inside = leech.nearest(z, method="eager")
    assert torch.equal(inside, leech.nearest(z, method="eager"))


def test_works_in_inference_mode_first_and_with_gradients_after() -> None:
    z = torch.randn(50, 24, requires_grad=True)
    with torch.inference_mode():
        first = leech.nearest(z, method="eager")
    again = leech.nearest(z * 1, method="eager")
    assert torch.equal(first, again)
    assert not again.requires_grad


def test_threads_do_not_share_workspace() -> None:
    parts = torch.randn(6, 1500, 24, generator=torch.Generator().manual_seed(8))
    expected = [leech.nearest(z, method="eager") for z in parts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda z: leech.nearest(z, method="eager"), parts))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_selecting_branch_agrees_with_the_gathering_one() -> None:
    """The traceback that runs on accelerators, run on a CPU."""
    z = torch.randn(300, 24, generator=torch.Generator().manual_seed(9))
    z[:40] = leech.unrank(torch.arange(0, 8000, 200)).float() + 0.1 * z[:40]
    z[40:60] *= torch.rand(20, 24) < 0.1
    columns = z.t().contiguous()
    tile, found = Tile(torch.empty(Tile.NUM_ROWS, 300)), torch.empty(3, 300, dtype=torch.int64)
    tile.decide(columns, columns, 0, NUM_GROUPS, out=found)
    expected = leech.nearest(z, method="eager")
    assert torch.equal(traceback_all(columns, columns, *found), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_is_refused(bad: float) -> None:
    z = torch.zeros(5, 24)
    z[3, 7] = bad
    with pytest.raises(ValueError, match="finite"):
        leech.nearest(z)


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(\.\.\., 24\), got \(4, 25\)"):
        leech.nearest(torch.zeros(4, 25))
    with pytest.raises(ValueError, match=r"\(\.\.\., 24\)"):
        leech.nearest(torch.tensor(1.0))
    with pytest.raises(ValueError, match="floating dtype"):
        leech.nearest(torch.zeros(4, 24, dtype=torch.int64))
    with pytest.raises(ValueError, match="chunk_size"):
        leech.nearest(torch.zeros(4, 24), chunk_size=0)
    with pytest.raises(ValueError, match=r"method kernel needs .* got torch.float64"):
        leech.nearest(torch.zeros(4, 24, dtype=torch.float64), method="kernel")
    with pytest.raises(ValueError, match="method must be eager, kernel or None, got 'fast'"):
        leech.nearest(torch.zeros(4, 24), method="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [0, 400, 20_000, 100_000, 196_559])
def test_neighbors(index: int) -> None:
    near = leech.neighbors(index)
    assert near.shape == (4600,)
    assert (near.diff() > 0).all()
    products = (leech.unrank(near).int() * leech.unrank(torch.tensor(index)).int()).sum(1)
    assert (products == 16).all()
    with pytest.raises(ValueError, match="196560"):
        leech.neighbors(leech.NUM_CODES)


def test_random_neighbor_picks_by_the_uniform_number() -> None:
    g = torch.Generator().manual_seed(10)
    indices = torch.randint(0, leech.NUM_CODES, (5, 30), generator=g)
    uniforms = torch.rand(5, 30, generator=g)
    uniforms[0, 0], uniforms[0, 1] = 0.0, 1 - 2.0**-24
    found = leech.random_neighbor(indices, uniforms)
    assert found.shape == indices.shape
    for place in ((0, 0), (0, 1), (2, 3), (4, 29)):
        near = leech.neighbors(int(indices[place]))
        assert found[place] == near[int(uniforms[place].double() * 4600)]
    assert torch.equal(leech.random_neighbor(indices, uniforms, chunk_size=7), found)
    assert leech.random_neighbor(indices[:0], uniforms[:0]).shape == (0, 30)


def test_random_neighbor_refuses() -> None:
    index, uniform = torch.tensor([3]), torch.tensor([0.5])
    with pytest.raises(ValueError, match="one shape"):
        leech.random_neighbor(index, uniform[None])
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"uniforms must lie in \[0, 1\)"):
            leech.random_neighbor(index, torch.tensor([wrong]))
    with pytest.raises(ValueError, match="196560"):
        leech.random_neighbor(torch.tensor([-1]), uniform)

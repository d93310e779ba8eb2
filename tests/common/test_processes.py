from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from lambda24.common.processes import gather, share


def processes(world: int, rank: int, everyone: list[Tensor]) -> Any:
    """An accelerator whose processes hold `everyone`."""
    return SimpleNamespace(
        num_processes=world,
        process_index=rank,
        device=torch.device("cpu"),
        gather=lambda local: torch.cat(everyone),
    )


@pytest.mark.parametrize(("count", "world"), [(7, 3), (6, 3), (2, 4), (1, 1)])
def test_gathered_shares_are_the_list(count: int, world: int) -> None:
    shares = [share(count, processes(world, rank, [])) for rank in range(world)]
    assert len({len(part) for part in shares}) == 1
    values = [torch.stack([part, part**2], dim=1) for part in shares]
    for rank in range(world):
        found = gather(values[rank], count, processes(world, rank, values))
        assert found[:, 0].tolist() == list(range(count))
        assert torch.equal(found[:, 1], found[:, 0] ** 2)


def test_one_process_needs_no_accelerator() -> None:
    assert share(4, None).tolist() == [0, 1, 2, 3]
    values = torch.rand(4)
    assert gather(values, 4, cast(Any, None)) is values

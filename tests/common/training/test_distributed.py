"""The loop on two processes, copied (DDP) or sharded (FSDP2), does what it does on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.common.training.toy_run import ToyTask, records, toy_config, train, two_processes

OPTIONS: dict[str, Any] = {
    "dropout": 0.0,
    "accumulation": 2,
    "batch_size": 16,
    "schedule": "constant",
    "log_every": 1,
}
STEPS = 4


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[ToyTask, Path]:
    run = tmp_path_factory.mktemp("one")
    task, _ = train(toy_config(steps=STEPS, **OPTIONS), run)
    return task, run


def assert_close(found: Any, expected: Any) -> None:
    """Same keys, same numbers but for the order of sums."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_close(found[key], expected[key])
    elif isinstance(expected, list):
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    else:
        assert found == expected


def interleaved(ranks: list[Any]) -> list[list[int]]:
    """Keys of the samples of each micro-batch."""
    return [a + b for a, b in zip(ranks[0]["seen"], ranks[1]["seen"], strict=True)]


def test_two_copies_do_what_one_does(one: tuple[ToyTask, Path], tmp_path: Path) -> None:
    task, run = one
    configs = {"configs": [{"steps": STEPS, **OPTIONS}], "run": str(tmp_path)}
    ranks = two_processes(configs, tmp_path)
    assert interleaved(ranks) == task.seen
    for rank in ranks:
        assert not rank["sharded"]
        assert rank["gradients_in_buckets"]
        assert_close(rank["state"], task.state_dict())
    for name, weight in ranks[0]["state"]["model"].items():
        assert torch.equal(weight, ranks[1]["state"]["model"][name])
    keys = ("step", "loss", "gradient_norm")
    assert_close(torch.tensor(records(tmp_path, *keys)), torch.tensor(records(run, *keys)))


def test_a_whole_run_goes_on_sharded_and_whole_again(
    one: tuple[ToyTask, Path], tmp_path: Path
) -> None:
    """One process writes step 1, two shards step 3, one process the last."""
    task, _ = one
    train(toy_config(steps=1, **OPTIONS), tmp_path)
    configs = {"configs": [{"steps": n, **OPTIONS} for n in (2, 3)], "run": str(tmp_path)}
    ranks = two_processes(configs, tmp_path, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    assert interleaved(ranks) == task.seen[4:6]  # of step 2, two micro-batches
    total = sum(parameter.numel() for parameter in task.plain.parameters())
    assert all(rank["sharded"] for rank in ranks)
    assert [rank["averaged"] for rank in ranks] == [total // 2] * 2
    assert_close(ranks[0]["state"], ranks[1]["state"])
    last, _ = train(toy_config(steps=STEPS, **OPTIONS), tmp_path)
    assert last.seen == task.seen[6:]
    assert_close(last.state_dict(), task.state_dict())

"""Run folders: configs compared, metrics, logs, checkpoints."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from lambda24.common.config import config_class, to_dict
from lambda24.common.files import DamagedFileError, UnwritableError
from lambda24.common.training.loop import LoopConfig
from lambda24.common.training.run_folder import (
    FREE_ENDINGS,
    LOGGER,
    BestWeights,
    Checkpoints,
    RunFolder,
    flatten,
)


@config_class
class Config:
    loop: LoopConfig = LoopConfig(steps=10, batch_size=4)
    width: int = 3
    names: tuple[str, ...] = ()


def test_config_is_compared(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match=r"no config\.yaml"):
        folder.check_config(Config())
    folder.start(Config(), 0)
    folder.check_config(Config())
    longer = LoopConfig(steps=20, batch_size=4, save_every=3, keep_checkpoints=7, log_every=1)
    folder.check_config(Config(loop=longer))
    with pytest.raises(ValueError, match="started with another config") as caught:
        folder.check_config(Config(loop=LoopConfig(steps=10, batch_size=8), names=("a",)))
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert lines == [
        "loop.batch_size: the run has 4, got 8",
        "names: the run has [], got ['a']",
    ]


def test_not_all_differences_are_shown(tmp_path: Path) -> None:
    """The config of another kind of run shares hardly a key."""
    folder = RunFolder(tmp_path)
    folder.path.mkdir(exist_ok=True)
    folder.config_file.write_text("\n".join(f"key_{number}: {number}" for number in range(20)))
    with pytest.raises(ValueError, match="started with another config") as caught:
        folder.check_config(Config())
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert lines[0] == "key_0: the run has 0, got 'nothing'"
    assert lines[7] == "key_7: the run has 7, got 'nothing'"
    assert len(lines) == 9
    differing = 20 + len(
        [key for key in flatten(to_dict(Config())) if not key.endswith(FREE_ENDINGS)]
    )
    assert lines[8] == f"and {differing - 8} more"


def test_metrics_are_cut_back_on_resume(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.start(Config(), 0)
    for step in range(1, 6):
        folder.append_metrics({"step": step, "loss": 1 / step})
    with open(folder.metrics_file, "a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    folder.start(Config(), 3)
    folder.append_metrics({"step": 4, "loss": float("nan")})
    assert [record["step"] for record in folder.metrics()] == [1, 2, 3, 4]
    assert folder.metrics()[2] == {"step": 3, "loss": 1 / 3}
    assert folder.metrics()[3]["loss"] is None


def test_log_goes_to_the_file_only_inside(tmp_path: Path) -> None:
    logger = logging.getLogger("lambda24.anything")
    folder = RunFolder(tmp_path)
    with folder.logging(enabled=True):
        logger.info("inside %d", 1)
        logging.getLogger("elsewhere").warning("not ours")
    logger.info("outside")
    with folder.logging(enabled=False):
        logger.info("another rank")
    text = (tmp_path / "log.txt").read_text()
    assert "INFO lambda24.anything: inside 1" in text
    assert text.count("\n") == 1
    assert not logging.getLogger("lambda24").handlers


def test_config_of_a_run_that_lacks_a_key(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.start(Config(), 0)
    text = folder.config_file.read_text()
    folder.config_file.write_text(text.replace("width: 3\n", ""))
    folder.check_config(Config())
    with pytest.raises(ValueError, match="width: the run has 3, got 4"):
        folder.check_config(Config(width=4))


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {
        "a.b": 1,
        "a.c.d": [2],
        "e": None,
    }


def test_checkpoints_are_pruned_after_the_new_one_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, {"step": step}, keep=2)
    assert checkpoints.steps() == [2, 3]

    def crash(state: Any, file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", crash)
    message = (
        r"step_000004 cannot be written: No space left on device; it takes 0\.8 MiB, [\d.,]+ MiB "
        r"are free there; .*step_000003 is whole, and the same command goes on from it"
    )
    with pytest.raises(UnwritableError, match=message):
        checkpoints.save(4, {"step": 4, "task": [{"w": torch.zeros(200_000)}]}, keep=1)
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.load(3) == {"step": 3}


def test_leftovers_of_a_kill_are_ignored(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1}, keep=2)
    leftover = tmp_path / "step_000002.tmp"
    leftover.mkdir()
    (leftover / "state.pt").write_bytes(b"half")
    assert checkpoints.steps() == [1]
    checkpoints.save(2, {"step": 2}, keep=2)
    assert checkpoints.load(2) == {"step": 2}
    assert not leftover.exists()


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    file = checkpoints.save(1, {"weight": torch.ones(1000)}, keep=1) / "state.pt"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"step_000001/state\.pt is damaged"):
        checkpoints.load(1)


def test_only_plain_state_is_saved(tmp_path: Path) -> None:
    state = {"task": {"optimizer": [1, {"lr": Path("x")}]}}
    with pytest.raises(TypeError, match=r"state\['task'\]\['optimizer'\]\[1\]\['lr'\] is a .*Path"):
        Checkpoints(tmp_path).save(1, state, keep=1)
    assert list(tmp_path.iterdir()) == []


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("unpickled",))


def test_nothing_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(tmp_path)
    file = checkpoints.save(1, {}, keep=1) / "state.pt"
    torch.save({"x": Evil()}, file)
    with pytest.raises(ValueError, match=r"state\.pt is damaged"):
        checkpoints.load(1)
    assert "unpickled" not in capsys.readouterr().out


def test_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"weights": torch.arange(50.0), "step": 3}, keep=2)
    file = checkpoints.path(3) / "state.pt"
    whole, generator = file.read_bytes(), torch.Generator().manual_seed(0)
    for place in torch.randint(8 * len(whole), (100,), generator=generator).tolist():
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(bytes(changed))
        with pytest.raises(ValueError, match=r"state\.pt is damaged: .* remove .*step_000003"):
            checkpoints.load(3)
    file.write_bytes(whole)
    assert checkpoints.load(3)["step"] == 3
    file.with_suffix(".sha256").unlink()  # of an older version
    assert checkpoints.load(3)["step"] == 3


def test_damaged_files_of_a_run_are_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.start(Config(), 0)
    folder.append_metrics({"step": 1, "loss": 1.0})
    folder.append_metrics({"step": 2, "loss": 1.0})
    whole = folder.metrics_file.read_text()
    for text in (whole.replace('"step": 2', '"step": "2"'), whole.replace("}\n{", "}\n{{")):
        folder.metrics_file.write_text(text)
        with pytest.raises(DamagedFileError, match=r"metrics\.jsonl \(line 2\) is damaged"):
            folder.metrics()
    folder.metrics_file.write_bytes(b"\xff\n")
    with pytest.raises(DamagedFileError, match=r"metrics\.jsonl is damaged"):
        folder.metrics()
    for content in (b"\xff", b"[1]", b"a: [", b"3"):
        folder.config_file.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"config\.yaml is damaged"):
            folder.check_config(Config())
    best = BestWeights(tmp_path, "nll")
    best.keep(3, 1.5, lambda folder: None)
    (tmp_path / "best" / "step_000003" / "held_out.json").write_text('{"step": 3}')
    with pytest.raises(DamagedFileError, match=r"held_out\.json is damaged"):
        best.is_beaten_by(1.0)


def test_a_damaged_checkpoint_says_what_is_left(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        file = checkpoints.save(step, {"weight": torch.ones(10)}, keep=2) / "state.pt"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedFileError, match=r"remove .*step_000002 to go on from step 1"):
        checkpoints.load(2)


def test_a_full_log_is_no_page_of_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    with folder.logging(enabled=True):
        handler = next(h for h in LOGGER.handlers if isinstance(h, logging.FileHandler))
        handler.stream.close()
        handler.stream = open("/dev/full", "w")  # noqa: SIM115
        LOGGER.info("a line")
        handler.stream = open(tmp_path / "other", "w")  # noqa: SIM115
    assert "Traceback" not in capsys.readouterr().err


def test_paths_may_change_whose_contents_were_compared(tmp_path: Path) -> None:
    @config_class
    class Paths:
        run: str
        tokens: str | None = None

    folder = RunFolder(tmp_path)
    folder.start(Paths(run="here", tokens="a"), 0)
    folder.check_config(Paths(run="there", tokens="a"))
    folder.check_config(Paths(run="there", tokens="b"), ("tokens",))
    with pytest.raises(ValueError, match="tokens: the run has 'a', got 'b'"):
        folder.check_config(Paths(run="there", tokens="b"))
    with pytest.raises(ValueError, match="tokens: the run has 'a', got None"):
        folder.check_config(Paths(run="there"), ("tokens",))

"""Model folders, training checkpoints, and crashes in the middle of writing them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lambda24.common.training import checkpoint
from lambda24.common.training.checkpoint import Checkpoints, PretrainedModel, atomic_folder


class Tiny(PretrainedModel):
    folder_name = "tiny"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.layer = nn.Linear(width, width)
        self.tied = nn.Linear(width, width, bias=False)
        self.tied.weight = self.layer.weight
        self.register_buffer("count", torch.tensor(3))

    def config_dict(self) -> dict[str, Any]:
        return {"width": self.width}

    @classmethod
    def from_config_dict(cls, data: dict[str, Any]) -> Tiny:
        return cls(data["width"])


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a local folder must not touch the network")

    monkeypatch.setattr(checkpoint, "snapshot_download", refuse)


def test_save_and_load(tmp_path: Path) -> None:
    model = Tiny(4)
    model.save_pretrained(tmp_path / "run" / "tiny")
    names = {file.name for file in (tmp_path / "run" / "tiny").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    for folder in (tmp_path / "run" / "tiny", str(tmp_path / "run")):
        loaded = Tiny.from_pretrained(folder)
        assert not loaded.training
        assert loaded.tied.weight is loaded.layer.weight
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name])


def test_saving_again_replaces(tmp_path: Path) -> None:
    Tiny(4).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    Tiny(5).save_pretrained(tmp_path)
    assert Tiny.from_pretrained(tmp_path).width == 5
    assert (tmp_path / "README.md").read_text() == "mine"


def test_crash_while_saving_keeps_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Tiny(4)
    old.save_pretrained(tmp_path)

    def crash(tensors: Any, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", crash)
    with pytest.raises(OSError, match="disk full"):
        Tiny(5).save_pretrained(tmp_path)
    assert torch.equal(Tiny.from_pretrained(tmp_path).layer.weight, old.layer.weight)
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    Tiny(4).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-7])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        Tiny.from_pretrained(tmp_path)
    weights.write_bytes(content)
    (tmp_path / "config.json").write_text('{"width": ')
    with pytest.raises(ValueError, match=r"config\.json does not describe a Tiny"):
        Tiny.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json does not describe a Tiny: 'width'"):
        Tiny.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        Tiny.from_pretrained(tmp_path)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    Tiny(4).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    del tensors["count"]
    tensors["extra"] = torch.zeros(1)
    tensors["layer.bias"] = torch.zeros(7)
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit Tiny") as caught:
        Tiny.from_pretrained(tmp_path)
    assert "count: missing from the file" in str(caught.value)
    assert "extra: not a tensor of this model" in str(caught.value)
    assert "layer.bias: shape (7,) in the file, (4,) here" in str(caught.value)


@pytest.mark.parametrize("name", ["./nothing", "/nothing/at/all", "a/b/c"])
def test_missing_folder(name: str) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        Tiny.from_pretrained(name)


def test_unknown_hub_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise checkpoint.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(checkpoint, "snapshot_download", offline)
    with pytest.raises(ValueError, match="'me/model' is neither a local folder nor"):
        Tiny.from_pretrained("me/model")


def test_hub_download_is_limited_to_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tiny(4).save_pretrained(tmp_path / "tiny")
    asked: dict[str, Any] = {}

    def snapshot(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(checkpoint, "snapshot_download", snapshot)
    assert Tiny.from_pretrained("me/model", revision="v1").width == 4
    assert (asked["name"], asked["revision"]) == ("me/model", "v1")
    assert "tiny/model.safetensors" in asked["allow_patterns"]
    assert json.loads((tmp_path / "tiny" / "config.json").read_text()) == {"width": 4}


def test_push_to_hub_uploads_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, Any] = {}

    class Api:
        def __init__(self, **options: Any) -> None:
            pass

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            return type("Url", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, folder_path: Path, **options: Any) -> str:
            uploaded.update({file.name: file.read_bytes() for file in folder_path.iterdir()})
            return "url"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert Tiny(4).push_to_hub("tiny") == "url"
    assert set(uploaded) == {"config.json", "model.safetensors", "README.md"}
    assert json.loads(uploaded["config.json"]) == {"width": 4}
    assert b"lambda24" in uploaded["README.md"]


def test_atomic_folder(tmp_path: Path) -> None:
    target = tmp_path / "step"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(KeyError), atomic_folder(target) as folder:  # noqa: PT012
        (folder / "a").write_text("2")
        raise KeyError
    assert (target / "a").read_text() == "1"
    with atomic_folder(target) as folder:
        (folder / "b").write_text("3")
    assert [file.name for file in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_checkpoints_are_pruned_after_the_new_one_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, {"step": step}, keep=2)
    assert checkpoints.steps() == [2, 3]

    def crash(state: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(4, {"step": 4}, keep=1)
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

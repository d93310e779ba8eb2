"""Model folders, and crashes in the middle of writing them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lambda24.common import pretrained
from lambda24.common.pretrained import PretrainedModel


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

    monkeypatch.setattr(pretrained, "snapshot_download", refuse)


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

    monkeypatch.setattr(pretrained, "save_file", crash)
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
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        Tiny.from_pretrained(tmp_path)
    weights.write_bytes(content)
    (tmp_path / "config.json").write_text('{"width": ')
    with pytest.raises(ValueError, match=r"config\.json does not describe a Tiny"):
        Tiny.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"width": 5}')
    with pytest.raises(ValueError, match=r"config\.json is damaged: .* with another config"):
        Tiny.from_pretrained(tmp_path)
    save_file(load_file(weights), weights)  # as earlier versions wrote it, without digests
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
        raise pretrained.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(pretrained, "snapshot_download", offline)
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

    monkeypatch.setattr(pretrained, "snapshot_download", snapshot)
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


def test_every_flipped_bit_of_the_weights_is_noticed(tmp_path: Path) -> None:
    """By the digest, or already by the format; what is read is what was written."""
    model = Tiny(4)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole, right = file.read_bytes(), model.state_dict()
    for place in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(bytes(changed))
        try:
            found = Tiny.from_pretrained(tmp_path).state_dict()
        except ValueError as error:
            assert "model.safetensors" in str(error)  # noqa: PT017
        else:  # in what the header says beside the tensors
            assert all(torch.equal(found[name], right[name]) for name in right)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = Tiny(4)
    name = next(name for name, t in model.state_dict().items() if t.is_floating_point())
    with torch.no_grad():
        model.state_dict()[name].view(-1)[0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"model\.safetensors .* not finite: {name}"):
        Tiny.from_pretrained(tmp_path)


@pytest.mark.parametrize("width", [10**5, 10**9])
def test_an_absurd_config_is_refused_before_it_costs(
    tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes are compared with the weights' before a number is drawn."""
    Tiny(4).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    save_file(load_file(weights), weights)
    (tmp_path / "config.json").write_text(json.dumps({"width": width}))

    def drawn(module: nn.Linear) -> None:
        raise AssertionError("weights were drawn")

    monkeypatch.setattr(nn.Linear, "reset_parameters", drawn)
    with pytest.raises(ValueError, match=r"config\.json does not describe a Tiny"):
        Tiny.from_pretrained(tmp_path)


def test_what_a_killed_save_left_is_cleaned(tmp_path: Path) -> None:
    (tmp_path / ".saving-abc").mkdir()
    (tmp_path / ".saving-abc" / "model.safetensors").write_bytes(b"half")
    Tiny(4).save_pretrained(tmp_path)
    assert not list(tmp_path.glob(".saving-*"))


def test_the_config_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without it is no model yet: what a kill leaves is not taken for one."""
    replaced: list[str] = []
    replace = os.replace

    def remember(source: Any, target: Any) -> None:
        replaced.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", remember)
    Tiny(4).save_pretrained(tmp_path)
    ours = [name for name in replaced if name in ("model.safetensors", "config.json")]
    assert ours == ["model.safetensors", "config.json"]


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    """Whatever order metadata come in."""
    model = Tiny(4)
    files = []
    for number in range(8):
        model.save_pretrained(tmp_path / str(number))
        files.append((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert len(set(files)) == 1
    assert Tiny.from_pretrained(tmp_path / "0").width == 4

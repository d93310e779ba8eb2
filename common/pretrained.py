"""Trained models: module folders of `config.json` + `model.safetensors`, packaged ones, the Hub's.

Nothing here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lambda24.common.files import sync

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

NAMES = ("digits", "cifar10")
MODELS = Path(__file__).resolve().parents[1] / "models"  # beside `common` in a checkout, too
DIGEST_KEY = "sha256"  # of the metadata of a weights file: digest of its tensors

Model = TypeVar("Model", bound="PretrainedModel")


def state_digest(text: str, state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a text and of tensors with their names, in hexadecimal."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class PretrainedModel(
    nn.Module,
    ModelHubMixin,
    ABC,
    library_name="lambda24",
    paper_url="https://arxiv.org/abs/2512.14697",
):
    """A module that saves to and loads from a model folder or the Hugging Face Hub.

    `folder_name` is the subfolder this model has inside a run or pipeline folder.
    """

    folder_name: ClassVar[str]

    @abstractmethod
    def config_dict(self) -> dict[str, Any]:
        """Everything `from_config_dict` needs, as JSON types."""

    @classmethod
    @abstractmethod
    def from_config_dict(cls: type[Model], data: dict[str, Any]) -> Model:
        """A freshly initialised model.

        Raises:
            ValueError: data that does not describe a model of this class.
        """

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **hub: Any,
    ) -> str | None:
        """Writes the folder; each file is replaced whole, so a crash leaves a loadable model.

        `hub` may hold `commit_message`, `private`, `token`, ... for `push_to_hub`.
        """
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        # The mixin deletes config.json before it writes, so it gets a folder of its own.
        with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as staging:
            super().save_pretrained(staging, model_card_kwargs=model_card_kwargs)
            for file in sorted(Path(staging).iterdir(), key=lambda file: file.name == CONFIG_FILE):
                if file.name != "README.md" or not (target / file.name).exists():
                    sync(file)
                    os.replace(file, target / file.name)
        if push_to_hub:
            name = repo_id or target.name
            return self.push_to_hub(name, model_card_kwargs=model_card_kwargs, **hub)
        return None

    def _save_pretrained(self, save_directory: Path) -> None:
        text = json.dumps(self.config_dict(), indent=2)
        (save_directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        tensors: dict[str, Tensor] = {}
        storages: set[int] = set()
        for name, tensor in self.state_dict().items():
            tensor = tensor.detach().cpu().contiguous()
            storage = tensor.untyped_storage().data_ptr()
            # safetensors refuses tensors that share memory (tied weights): store each once more.
            tensors[name] = tensor.clone() if storage in storages else tensor
            storages.add(storage)
        metadata = {"format": "pt", DIGEST_KEY: state_digest("", tensors)}
        save_file(tensors, save_directory / WEIGHTS_FILE, metadata=metadata)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[Model],
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Model:
        """Loads from a model folder, a run folder with a `folder_name` subfolder, or a Hub id.

        Or by the name of a packaged model (`packaged_folder`). A local folder never touches the
        network. The model is returned on the CPU in eval mode.

        Raises:
            ValueError: no such folder or Hub model; a file that is truncated or does not fit, with
                the file and the tensors.
        """
        source = str(pretrained_model_name_or_path)
        if not Path(source).is_dir():
            source = download_folder(
                source,
                patterns=[
                    prefix + file
                    for prefix in ("", f"{cls.folder_name}/")
                    for file in (CONFIG_FILE, WEIGHTS_FILE)
                ],
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        folder = Path(source)
        if not (folder / CONFIG_FILE).is_file() and (folder / cls.folder_name).is_dir():
            folder = folder / cls.folder_name
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} is not a {cls.__name__} folder: {name} is missing")
        model = _model_from_config(cls, folder / CONFIG_FILE)
        load_weights(model, folder / WEIGHTS_FILE)
        return model.eval()


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Copies a safetensors file into a module; every tensor must be there and fit.

    Floating tensors take the module's precision, whatever the file's is (see `store_as`).

    Raises:
        ValueError: unreadable file, or one whose tensors are not those that were written; missing,
            unexpected, mis-shaped or not finite tensors, by name.
    """
    tensors = _checked_tensors(path)
    own = module.state_dict()
    problems = [f"{name}: missing from the file" for name in own if name not in tensors]
    problems += [f"{name}: not a tensor of this model" for name in tensors if name not in own]
    problems += [
        f"{name}: shape {tuple(tensors[name].shape)} in the file, {tuple(own[name].shape)} here"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if problems:
        shown = problems[:8] + ([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])
        raise ValueError(f"{path} does not fit {type(module).__name__}:\n  " + "\n  ".join(shown))
    module.load_state_dict(tensors)


def _checked_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file, which must be finite and, if it tells their digest, have that."""
    try:
        with safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get(DIGEST_KEY)
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
    if digest is not None and digest != state_digest("", tensors):
        raise ValueError(f"{path} is damaged: its tensors are not those that were written")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{path} holds numbers that are not finite: {name}")
    return tensors


def _model_from_config(cls: type[Model], path: Path) -> Model:
    try:
        return cls.from_config_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe a {cls.__name__}: {error}") from error


def store_as(path: str | Path, dtype: torch.dtype) -> None:
    """Rounds the floating tensors of a safetensors file; reading it makes them fp32 again."""
    path = Path(path)
    tensors = load_file(path)
    rounded = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    temporary = path.with_suffix(".tmp")
    metadata = {"format": "pt", DIGEST_KEY: state_digest("", rounded)}
    save_file(rounded, temporary, metadata=metadata)
    sync(temporary)
    os.replace(temporary, path)


def download_folder(source: str, *, patterns: list[str], **options: Any) -> str:
    """Where a packaged model lies, or the files of a Hub model that match `patterns`.

    Args:
        options: as of `snapshot_download`.

    Raises:
        ValueError: no such model, or the Hub cannot be reached.
    """
    if (packaged := packaged_folder(source)) is not None:
        return str(packaged)
    if Path(source).is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise ValueError(f"{source} is not a folder")
    try:
        return str(snapshot_download(source, allow_patterns=patterns, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{source!r} is neither a local folder nor a reachable model on the Hub: {error}"
        ) from error


def packaged_folder(name: str) -> Path | None:
    """The folder of a packaged model; None if no model has this name.

    Raises:
        ValueError: a model of this name that the installation does not hold.
    """
    if name not in NAMES:
        return None
    folder = MODELS / name
    if not folder.is_dir():
        held = [other for other in NAMES if (MODELS / other).is_dir()]
        raise ValueError(
            f"the model {name!r} is not part of this installation, which holds: "
            f"{', '.join(held) or 'none'}"
        )
    return folder

"""Trained models: module folders of `config.json` + `model.safetensors`, packaged ones, the Hub's.

Nothing here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from lambda24.common.files import DamagedFileError, reading, sync

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
SHARED_AT_MOST = 4  # modules that share one parameter

NAMES = ("digits", "cifar10")
MODELS = Path(__file__).resolve().parents[1] / "models"  # beside `common` in a checkout, too
# Of the metadata of a weights file: digests of its tensors and of the config beside it.
DIGEST_KEY, CONFIG_DIGEST_KEY = "sha256", "config_sha256"

Model = TypeVar("Model", bound="PretrainedModel")


def state_digest(text: str, state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a text and of tensors with their names, in hexadecimal."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
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

        The weights file holds the SHA-256 of its tensors and of the config, which loading checks.
        `hub` may hold `commit_message`, `private`, `token`, ... for `push_to_hub`.
        """
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        for leftover in target.glob(".saving-*"):  # of a killed process
            shutil.rmtree(leftover, ignore_errors=True)
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
        config = self.config_dict()
        text = json.dumps(config, indent=2)
        (save_directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        tensors: dict[str, Tensor] = {}
        storages: set[int] = set()
        for name, tensor in self.state_dict().items():
            tensor = tensor.detach().cpu().contiguous()
            storage = tensor.untyped_storage().data_ptr()
            # safetensors refuses tensors that share memory (tied weights): store each once more.
            tensors[name] = tensor.clone() if storage in storages else tensor
            storages.add(storage)
        digests = {DIGEST_KEY: state_digest("", tensors), CONFIG_DIGEST_KEY: config_digest(config)}
        metadata = {"format": "pt", **digests}
        _save_tensors(tensors, save_directory / WEIGHTS_FILE, metadata)

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
            ValueError: no such folder or Hub model; a file that is damaged, not finite or does not
                fit, with the file and the tensors.
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
        data = _read_config(cls, folder)
        model = _model_from_config(cls, data, folder)
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
    with reading(path, "a safetensors file"):
        wanted = _metadata(path).get(DIGEST_KEY)
        tensors: dict[str, Tensor] = load_file(path)
    if wanted is not None and wanted != state_digest("", tensors):
        raise DamagedFileError(f"{path} is damaged: its tensors are not those that were written")
    for name, tensor in tensors.items():
        # The extremes of a tensor tell it, at a twentieth of the time of asking every number.
        if tensor.is_floating_point() and tensor.numel() and not _is_finite(tensor):
            raise DamagedFileError(f"{path} holds numbers that are not finite: {name}")
    return tensors


def _is_finite(tensor: Tensor) -> bool:
    low, high = tensor.aminmax()
    return math.isfinite(low) and math.isfinite(high)


def _save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """A safetensors file that is the same, byte for byte, whenever its contents are.

    The library writes metadata in an order that differs from process to process.
    """
    save_file(tensors, path, metadata=metadata)
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(length))


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of a config, in hexadecimal, however it is laid out as text."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _metadata(path: str | Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        found: dict[str, str] = file.metadata() or {}
    return found


def _read_config(cls: type[PretrainedModel], folder: Path) -> dict[str, Any]:
    file, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise DamagedFileError(f"{file} does not describe a {cls.__name__}: {error}") from error
    with reading(weights, "a safetensors file"):
        wanted = _metadata(weights).get(CONFIG_DIGEST_KEY)
    if wanted is not None and config_digest(data) != wanted:
        raise DamagedFileError(f"{file} is damaged: {weights.name} was saved with another config")
    return data


def _model_from_config(cls: type[Model], data: dict[str, Any], folder: Path) -> Model:
    """A model of a config that has no more parameters than the folder's weights."""
    weights = folder / WEIGHTS_FILE
    with reading(weights, "a safetensors file"), safe_open(weights, framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    # Parameters that modules share are stored once, and counted here once each.
    limit = SHARED_AT_MOST * sum(map(math.prod, shapes))
    try:
        with numbers_at_most(limit, f"{weights.name} holds"):
            return cls.from_config_dict(data)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        problem: Exception = error
    except (MemoryError, RuntimeError, RecursionError) as error:  # torch's allocator raises these
        problem = error
    raise DamagedFileError(
        f"{folder / CONFIG_FILE} does not describe a {cls.__name__}: {problem}"
    ) from problem


@contextmanager
def numbers_at_most(limit: int, what: str) -> Iterator[None]:
    """Within, modules of more than `limit` parameters are refused, before these are filled.

    So an absurd number of blocks or classes costs neither time nor memory.

    Args:
        what: where the limit comes from, for the message.

    Raises:
        ValueError: a larger model, or memory that is not there.
    """
    registered = 0

    def count(module: nn.Module, key: str, parameter: nn.Parameter | None) -> None:
        nonlocal registered
        registered += 0 if parameter is None else parameter.numel()
        if registered > limit:
            raise ValueError(f"a model of more numbers than {what}")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise ValueError(f"a model of more numbers than {what}") from error
    finally:
        handle.remove()


def store_as(path: str | Path, dtype: torch.dtype) -> None:
    """Rounds the floating tensors of a safetensors file; reading it makes them fp32 again."""
    path = Path(path)
    tensors = load_file(path)
    rounded = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    temporary = path.with_suffix(".tmp")
    metadata = {**_metadata(path), "format": "pt", DIGEST_KEY: state_digest("", rounded)}
    _save_tensors(rounded, temporary, metadata)
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

"""What a run leaves on disk, and finds there again.

    config.yaml  metrics.jsonl  log.txt  samples/step_N.png  checkpoints/step_N/  best/step_N/

Only the main process writes. A checkpoint is one folder a step that appears complete or not at all;
nothing is ever unpickled without `weights_only=True`. `best/step_N` is a model folder like the run
folder itself, with the weights of the lowest loss on held-out data.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lambda24.common.config import from_dict, read_yaml_text, save_config, to_dict
from lambda24.common.files import (
    DamagedFileError,
    atomic_folder,
    check_digest,
    reading,
    replace_text,
    write_digest,
    writing,
)

logger = logging.getLogger(__name__)

LOGGER = logging.getLogger("lambda24")
# A run may go on with other values of these: they change how long it runs, what it reports and how
# much memory it takes, but no gradient.
FREE_KEYS = ("steps", "log_every", "eval_every", "save_every", "sample_every", "keep_checkpoints")
FREE_ENDINGS = (
    *(f"loop.{key}" for key in FREE_KEYS),
    "loop.trackers",
    "num_workers",
    "checkpoint_activations",
)
MAX_DIFFERENCES = 8
"""How many differing keys of a config an error shows; two kinds of run differ in dozens."""
STATE_FILE = "state.pt"
PATIENCE = 3  # evaluations in a row that are worse than the best before a run says so
RECORD = "held_out.json"


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = Checkpoints(self.path / "checkpoints")
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"

    def sample_file(self, step: int) -> Path:
        return self.path / "samples" / f"step_{step:06d}.png"

    def check_config(self, config: object, compared: Collection[str] = ()) -> None:
        """Refuses to go on with a run that was started with another config.

        The number of steps, intervals of the loop, trackers and workers may differ, and how the run
        folder is spelt.

        Args:
            compared: keys of paths whose contents were compared, wherever they are now.

        Raises:
            ValueError: names the first differing keys with both values.
        """
        if not self.config_file.is_file():
            raise ValueError(f"{self.path} has checkpoints but no {self.config_file.name}")
        with reading(self.config_file, "the config of a run"):
            data: dict[str, Any] = dict(read_yaml_text(self.config_file.read_text("utf-8")) or {})
        with suppress(ValueError):  # keys that a run did not have yet are at their defaults
            data = to_dict(from_dict(type(config), data))
        stored, present = flatten(data), flatten(to_dict(config))
        absent = "nothing"
        differing = [
            f"{key}: the run has {stored.get(key, absent)!r}, got {present.get(key, absent)!r}"
            for key in {**stored, **present}
            if stored.get(key, absent) != present.get(key, absent)
            and not key.endswith(FREE_ENDINGS)
            and not _is_moved(key, stored, present, {"run", *compared})
        ]
        if differing:
            shown = differing[:MAX_DIFFERENCES]
            if len(differing) > len(shown):
                shown.append(f"and {len(differing) - len(shown)} more")
            raise ValueError(
                f"{self.path} was started with another config; use another run folder, or:\n  "
                + "\n  ".join(shown)
            )

    def start(self, config: object, step: int) -> None:
        """Writes the config and forgets metrics later than `step`, which a resumed run repeats."""
        self.path.mkdir(parents=True, exist_ok=True)
        save_config(config, self.config_file)
        records = [record for record in self.metrics() if record["step"] <= step]
        temporary = self.metrics_file.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
        os.replace(temporary, self.metrics_file)

    def metrics(self) -> list[dict[str, Any]]:
        """All records, oldest first; a last line cut off by a kill is ignored."""
        if not self.metrics_file.is_file():
            return []
        with reading(self.metrics_file, "metrics of a run"):
            lines = self.metrics_file.read_text(encoding="utf-8").split("\n")[:-1]
        return [
            _record(self.metrics_file, number, line) for number, line in enumerate(lines, 1) if line
        ]

    def append_metrics(self, record: Mapping[str, float]) -> None:
        """Adds one line; numbers that are not finite become null."""
        clean = {key: value if math.isfinite(value) else None for key, value in record.items()}
        line = json.dumps(clean) + "\n"
        with (
            self.writing(len(line), self.metrics_file),
            open(self.metrics_file, "a", encoding="utf-8") as file,
        ):
            file.write(line)

    def writing(self, needed: int, path: Path | None = None) -> AbstractContextManager[None]:
        """Around what writes `needed` bytes below this folder; see `files.writing`."""
        return writing(path or self.path, needed=needed, safe=self.checkpoints.safe_text())

    @contextmanager
    def logging(self, *, enabled: bool) -> Iterator[None]:
        """Sends this project's log messages to log.txt and, above any progress bar, to stderr."""
        if not enabled:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        file = _LogFile(self.path / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers: list[logging.Handler] = [file, _ConsoleHandler()]
        level = LOGGER.level
        LOGGER.setLevel(logging.INFO)
        for handler in handlers:
            LOGGER.addHandler(handler)
        try:
            yield
        finally:
            LOGGER.setLevel(level)
            for handler in handlers:
                LOGGER.removeHandler(handler)
            file.close()


def _is_moved(
    key: str, stored: Mapping[str, Any], present: Mapping[str, Any], paths: Collection[str]
) -> bool:
    """Whether a key is one of paths, then as now."""
    return key in paths and all(isinstance(side.get(key), str) for side in (stored, present))


def _record(file: Path, number: int, line: str) -> dict[str, Any]:
    with reading(f"{file} (line {number})", "metrics of a run"):
        record: dict[str, Any] = json.loads(line)
        if type(record["step"]) is not int:
            raise ValueError(f"step {record['step']!r}")
    return record


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk costs lines of the log, and no page of traceback for each."""


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


class Checkpoints:
    """The `step_N` folders of a run, each complete: `state.pt` is written before the rename."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def steps(self) -> list[int]:
        """Steps that can be resumed from, ascending."""
        names = [path.parent.name for path in self.folder.glob(f"step_*/{STATE_FILE}")]
        return sorted(int(name[5:]) for name in names if name[5:].isdigit())

    def save(self, step: int, state: Mapping[str, Any], *, keep: int) -> Path:
        """Writes `state`, and only then removes all but the newest `keep` checkpoints.

        Raises:
            TypeError: something in `state` that `load` would refuse.
            ValueError: no room, or no permission to write.
        """
        _check_plain(state, "state")
        with (
            writing(self.path(step), needed=_num_bytes(state), safe=self.safe_text()),
            atomic_folder(self.path(step)) as folder,
        ):
            with open(folder / STATE_FILE, "wb") as file:  # whose errors say what went wrong
                torch.save(dict(state), file)
            write_digest(folder / STATE_FILE)
        for old in self.steps()[: -max(keep, 1)]:
            shutil.rmtree(self.path(old), ignore_errors=True)
        return self.path(step)

    def load(self, step: int) -> dict[str, Any]:
        """Reads the state of one step onto the CPU.

        Raises:
            ValueError: damaged file.
        """
        file = self.path(step) / STATE_FILE
        try:
            with reading(file, "a checkpoint"):
                check_digest(file)
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
                if not isinstance(state, dict):
                    raise TypeError(f"it holds a {type(state).__name__}")
        except DamagedFileError as error:
            earlier = [other for other in self.steps() if other < step]
            way = f"to go on from step {earlier[-1]}" if earlier else "to begin anew"
            raise DamagedFileError(f"{error}; remove {file.parent} {way}") from error
        return state

    def safe_text(self) -> str:
        """Which checkpoint a run goes on from."""
        steps = self.steps()
        if not steps:
            return "no checkpoint is there yet"
        return f"{self.path(steps[-1])} is whole, and the same command goes on from it"


def _num_bytes(value: Any) -> int:
    """Of all tensors in nested mappings and lists."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_num_bytes, value.values()))
    return sum(map(_num_bytes, value)) if isinstance(value, (list, tuple)) else 0


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif value is not None and type(value) not in (Tensor, nn.Parameter, int, float, bool, str):
        raise TypeError(f"{where} is a {type(value)}, not a tensor or plain number")


class BestWeights:
    """What is kept below a run folder.

    A better folder appears whole, under its own name, before the one before it goes, so a killed
    run finds its best weights as they were. Those of a later step than the one that it resumes from
    count too: it makes the same again.

    Args:
        run: the run folder.
        name: what the task minimizes, a scalar of its evaluation.
    """

    def __init__(self, run: Path, name: str) -> None:
        self.run, self.name = run, name
        self.folder = run / "best"

    @property
    def found(self) -> dict[str, Any] | None:
        """`{"step": ..., NAME: ...}` of the best weights, if any are kept."""
        files = self.folder.glob(f"step_*[0-9]/{RECORD}")
        found = []
        for file in files:
            with reading(file, "a record of held-out scores"):
                kept = json.loads(file.read_text(encoding="utf-8"))
                found.append({"step": int(kept["step"]), self.name: float(kept[self.name])})
        best: dict[str, Any] | None = min(found, key=lambda kept: kept[self.name], default=None)
        return best

    def path(self, step: int) -> Path:
        """Where the weights of a step would be."""
        return self.folder / f"step_{step:06d}"

    def is_beaten_by(self, value: float) -> bool:
        """Whether `value` is lower than that of the best weights so far."""
        found = self.found
        return math.isfinite(value) and (found is None or value < found[self.name])

    def keep(self, step: int, value: float, save_pretrained: Callable[[Path], None]) -> None:
        """Puts the weights that `save_pretrained` writes in the place of the best ones."""
        with atomic_folder(self.path(step)) as folder:
            save_pretrained(folder)
            replace_text(folder / RECORD, json.dumps({"step": step, self.name: value}) + "\n")
        for other in self.folder.iterdir():
            if other != self.path(step):
                shutil.rmtree(other, ignore_errors=True)

    def describe(self, step: int) -> str:
        """Writes held_out.json when the run folder holds the weights of `step`; one line of it."""
        found = self.found
        record: dict[str, Any] = {
            "minimized": self.name,
            "this_folder": {"weights": "last", "step": step},
        }
        text = f"{self.run} holds the last weights, of step {step}"
        if found is not None:
            folder = self.path(found["step"])
            record["best"] = {"folder": str(folder.relative_to(self.run)), **found}
            text += (
                f"; the best by held-out {self.name}, {found[self.name]:.4g} at step "
                f"{found['step']}, are in {folder}"
            )
        replace_text(self.run / RECORD, json.dumps(record, indent=2) + "\n")
        return text


def warn_of_rise(
    best: BestWeights, records: Sequence[Mapping[str, Any]], evaluation: Mapping[str, float]
) -> None:
    """Says, at the first time only, that `PATIENCE` evaluations in a row were worse than the best.

    Args:
        records: of metrics.jsonl, the newest evaluation's included.
        evaluation: the newest; "train_NAME", where it is there, is the same on training data.
    """
    key = f"eval/{best.name}"
    history = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    if not is_first_rise([value for _, value in history]):
        return
    step, value = min(history, key=lambda place: place[1])
    train = evaluation.get(f"train_{best.name}")
    shown = "" if train is None else f", on training data {train:.4g}"
    logger.warning(
        "held-out %s was %.4g at step %d and has been higher in each of %d evaluations since, now "
        "%.4g%s: more steps make the model worse on data that it has not seen",
        best.name,
        value,
        step,
        PATIENCE,
        history[-1][1],
        shown,
    )


def is_first_rise(values: Sequence[float], patience: int = PATIENCE) -> bool:
    """Whether the newest value is the first to end `patience` in a row above the best before.

    Args:
        values: of all evaluations, oldest first.
    """
    return _is_risen(values, patience) and not any(
        _is_risen(values[:end], patience) for end in range(len(values))
    )


def _is_risen(values: Sequence[float], patience: int) -> bool:
    earlier, newest = values[:-patience], values[-patience:]
    return bool(earlier) and min(newest) > min(earlier)


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

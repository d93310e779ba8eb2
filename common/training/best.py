"""A run's best weights by the number on held-out data that its task wants small.

    best/step_N/  held_out.json

beside the last weights: `best/step_N` is a model folder like the run folder itself, and
held_out.json says which weights either holds. Only the main process uses it.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lambda24.common.files import replace_text
from lambda24.common.training.checkpoint import atomic_folder

logger = logging.getLogger(__name__)

PATIENCE = 3
RECORD = "held_out.json"


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
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
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

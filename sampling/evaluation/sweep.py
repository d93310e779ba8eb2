"""Which sampling settings are best: a grid of them, each measured on images of the same seeds.

The seeds are not those of the final evaluation, so that its numbers are not the best of many draws.
An output folder holds `sweep.json` (what all settings share) and `rows.jsonl` (one evaluation
result a line, written as it comes); a sweep that starts again skips the settings found there.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from accelerate import Accelerator
from pydantic import Field

from lambda24.common.config import config_class, from_dict, to_dict
from lambda24.common.data.dataset import ImageDataset
from lambda24.common.files import replace_text
from lambda24.common.metrics.pairs import save_metrics
from lambda24.common.training.run_folder import flatten
from lambda24.sampling.evaluation.protocol import (
    EvaluationConfig,
    EvaluationRun,
    GeneratorEvaluator,
)
from lambda24.sampling.evaluation.result import EvaluationResult
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.ramps import GuidanceSchedule, PowerRamp, Schedule, VarRamp
from lambda24.sampling.settings import SamplingConfig
from lambda24.tokenizer.tokens import TokenSpec

FIELDS = ("guidance_scale", "top_k", "top_p", "min_p", "temperature")

Scales = Annotated[tuple[GuidanceSchedule, ...], Field(min_length=1)]
Values = Annotated[tuple[Schedule, ...], Field(min_length=1)]
Limits = Annotated[tuple[Schedule | None, ...], Field(min_length=1)]


@config_class
class SweepConfig:
    """All combinations of the listed values are tried.

    Args:
        guidance_scale: values of that field of `SamplingConfig`, each a number, a list with one
            entry per scale, or a ramp. Here and below, None keeps the value of
            `evaluation.sampling`, or of the pipeline where that is missing.
        top_k: None in the list keeps all codes, as in the next two.
        num_images: of each setting; None takes the evaluation's number.
        first_seed: image i has seed first_seed + i, whatever the settings.
    """

    guidance_scale: Scales | None = (1.0, 1.5, 2.0, 3.0)
    top_k: Limits | None = None
    top_p: Limits | None = None
    min_p: Limits | None = None
    temperature: Values | None = None
    num_images: Annotated[int, Field(ge=2)] | None = None
    first_seed: Annotated[int, Field(ge=0)] = 1_000_000


@config_class
class SweepRun(EvaluationRun):
    """A file of `scripts/evaluate_generator.py`, and what is tried before that evaluation.

    Args:
        out: folder of rows, table and plot; None takes `sweep` next to the model.
    """

    sweep: SweepConfig = SweepConfig()

    def __post_init__(self) -> None:
        final, own = seeds(self.evaluation), seeds(self.swept)
        if max(final.start, own.start) < min(final.stop, own.stop):
            raise ValueError(
                f"sweep.first_seed: seeds {own.start} to {own.stop - 1} overlap with the "
                f"evaluation's {final.start} to {final.stop - 1}"
            )

    @property
    def swept(self) -> EvaluationConfig:
        """The evaluation of one setting, its `sampling` the one that the grid changes."""
        return replace(
            self.evaluation,
            num_images=self.sweep.num_images or self.evaluation.num_images,
            first_seed=self.sweep.first_seed,
        )


@dataclass(frozen=True)
class SweepRow:
    """One setting and how good its images are."""

    sampling: SamplingConfig
    result: EvaluationResult

    @classmethod
    def of(cls, result: EvaluationResult) -> SweepRow:
        """The setting is the one that the protocol names."""
        return cls(from_dict(SamplingConfig, result.protocol["sampling"]), result)


def describe(sampling: SamplingConfig) -> str:
    """Guidance, and fields that are not at their defaults: `guidance_scale 2, top_k 900`."""
    values = {name: getattr(sampling, name) for name in FIELDS}
    return ", ".join(
        f"{name} {schedule_text(value)}"
        for name, value in values.items()
        if name == "guidance_scale" or value != getattr(SamplingConfig(), name)
    )


def schedule_text(schedule: GuidanceSchedule | None) -> str:
    """`2`, `1/2/3`, `linear 1→3`, `var 1.5`, `none`."""
    if schedule is None:
        return "none"
    if isinstance(schedule, (int, float)):
        return f"{schedule:g}"
    if isinstance(schedule, tuple):
        return "/".join(f"{value:g}" for value in schedule)
    if isinstance(schedule, VarRamp):
        return f"var {schedule.cfg:g}"
    ends = f"{schedule.kind} {schedule.start:g}→{schedule.end:g}"
    return f"{ends} (power {schedule.power:g})" if isinstance(schedule, PowerRamp) else ends


def seeds(config: EvaluationConfig) -> range:
    """Seeds of the images of an evaluation."""
    return range(config.first_seed, config.first_seed + config.num_images)


def grid(config: SweepConfig, base: SamplingConfig, spec: TokenSpec) -> list[SamplingConfig]:
    """All combinations, guidance slowest.

    Raises:
        ValueError: a setting that does not fit the pyramid, or two that draw the same.
    """
    swept = {name: getattr(config, name) for name in FIELDS if getattr(config, name) is not None}
    settings: list[SamplingConfig] = []
    seen: dict[Any, dict[str, Any]] = {}
    for values in itertools.product(*swept.values()):
        changes = dict(zip(swept, values, strict=True))
        setting = replace(base, **changes)
        try:
            resolved = setting.resolve(spec)
        except ValueError as error:
            raise ValueError(f"sweep: {error}") from None
        if resolved in seen:
            raise ValueError(f"sweep: {changes} draws what {seen[resolved]} draws")
        seen[resolved] = changes
        settings.append(setting)
    return settings


def sweep(
    pipeline: Pipeline,
    dataset: ImageDataset,
    run: SweepRun,
    folder: Path,
    *,
    model: str,
    accelerator: Accelerator | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> list[SweepRow]:
    """Measures the settings of the grid that the folder does not have yet.

    Metrics that are not finite are recorded too, as null in the file and NaN in the rows.

    Args:
        folder: where rows are written as they come.
        model: identifies the weights.
        accelerator: shares the sampling among its processes; all get the rows.
        announce: gets a line for each row on the main process.

    Returns:
        All rows of the folder, those of earlier grids too.

    Raises:
        ValueError: before anything is sampled: a bad grid, a model that does not fit the data,
            fewer images than the metrics need, or a folder with rows of another model, evaluation
            or reference.
    """
    config = run.swept
    settings = grid(run.sweep, config.sampling or pipeline.sampling, pipeline.generator.spec)
    evaluator = GeneratorEvaluator(
        pipeline, dataset, config, part=run.reference, accelerator=accelerator
    )
    shared = {
        "model": model,
        "evaluation": {k: v for k, v in to_dict(config).items() if k != "sampling"},
        "dtype": str(pipeline.dtype),
        "reference": {"part": run.reference, "fingerprint": dataset.fingerprint},
        "scales": list(pipeline.generator.spec.scales),
    }
    is_main = accelerator is None or accelerator.is_main_process
    files = SweepFolder(folder)
    files.check(shared)
    rows = files.rows()
    if accelerator is not None:
        accelerator.wait_for_everyone()  # all have read before the first one writes
    if is_main:
        files.start(shared, rows)
    spec = pipeline.generator.spec
    done = [row.sampling.resolve(spec) for row in rows]
    missing = [setting for setting in settings if setting.resolve(spec) not in done]
    for number, setting in enumerate(missing, start=1):
        result = evaluator.measure(setting)
        rows.append(SweepRow.of(result))
        if is_main:
            files.append(result)
            cells = ", ".join(f"{name} {value}" for name, value in result.cells().items())
            announce(f"{number} of {len(missing)}, {describe(setting)}: {cells}")
    return rows


class SweepFolder:
    """The files of a sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shared_file = path / "sweep.json"
        self.rows_file = path / "rows.jsonl"

    def check(self, shared: dict[str, Any]) -> None:
        """Refuses a folder whose rows cannot be compared with new ones.

        Raises:
            ValueError: names each differing key with both values.
        """
        if not self.shared_file.is_file():
            if self.rows_file.is_file():
                raise ValueError(f"{self.path} has rows but no {self.shared_file.name}")
            return
        stored = flatten(json.loads(self.shared_file.read_text(encoding="utf-8")))
        present = flatten(shared)
        differing = [
            f"{key}: the folder has {stored.get(key)!r}, got {present.get(key)!r}"
            for key in {**stored, **present}
            if stored.get(key) != present.get(key)
        ]
        if differing:
            raise ValueError(
                f"{self.path} holds another sweep; use another out=FOLDER, or:\n  "
                + "\n  ".join(differing)
            )

    def start(self, shared: dict[str, Any], rows: Sequence[SweepRow]) -> None:
        """Writes what all rows share, and the rows without a last line cut off by a kill."""
        save_metrics(shared, self.shared_file)
        replace_text(self.rows_file, "".join(_line(row.result) for row in rows))

    def rows(self) -> list[SweepRow]:
        """Rows in the order in which they came; a last line cut off by a kill is ignored."""
        return list(self._read()) if self.rows_file.is_file() else []

    def _read(self) -> Iterator[SweepRow]:
        for line in self.rows_file.read_text(encoding="utf-8").split("\n")[:-1]:
            yield SweepRow.of(EvaluationResult.from_dict(json.loads(line)))

    def append(self, result: EvaluationResult) -> None:
        with open(self.rows_file, "a", encoding="utf-8") as file:
            file.write(_line(result))


def _line(result: EvaluationResult) -> str:
    return json.dumps(result.to_dict(), allow_nan=False) + "\n"

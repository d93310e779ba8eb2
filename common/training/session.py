"""One process's part in a run: opens what is there, steps, logs, evaluates, draws and saves."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from pydantic import Field
from torch.profiler import record_function
from tqdm import tqdm

from lambda24.common.config import config_class, to_dict
from lambda24.common.data.batches import Batch, SampleSource, build_loader, hash_integer
from lambda24.common.data.streaming import StreamedImages, StreamLoader
from lambda24.common.images import save_image
from lambda24.common.optim.schedule import NotFiniteError
from lambda24.common.training.best import BestWeights, warn_of_rise
from lambda24.common.training.fsdp import gather, scatter
from lambda24.common.training.precision import Precision
from lambda24.common.training.profiling import FIRST_STEP, StepProfile
from lambda24.common.training.task import Task
from lambda24.common.training.tracking import (
    Meter,
    RunFolder,
    Stopwatch,
    flatten,
    memory_in_use,
    progress_text,
    time_text,
)

logger = logging.getLogger(__name__)

EVALUATE, SAMPLE = -1, -2  # take the place of the rank when seeding what is not a step

Interval = Annotated[int, Field(ge=1)]
Tracker = Literal[
    "tensorboard", "wandb", "trackio", "comet_ml", "mlflow", "aim", "clearml", "dvclive", "swanlab"
]


@config_class
class LoopConfig:
    """How long to train and what to do on the way.

    Args:
        steps: optimizer steps of the whole run. A run may be resumed with another number: "cosine"
            and "warmdown" then jump to the curve of the new number, "constant" does not notice.
        batch_size: images of a step, over all processes and micro-batches.
        accumulation: micro-batches of a step.
        precision: "bf16" is autocast, parameters stay fp32; "auto" is bf16 where hardware has it.
        log_every: steps between lines of metrics.jsonl.
        eval_every, save_every, sample_every: None is once, after the last step.
        keep_checkpoints: older ones are removed after a newer one is complete.
        trackers: accelerate trackers beside metrics.jsonl.
    """

    steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    accumulation: Annotated[int, Field(ge=1)] = 1
    precision: Precision = "fp32"
    log_every: Interval = 20
    eval_every: Interval | None = None
    save_every: Interval | None = None
    sample_every: Interval | None = None
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    trackers: tuple[Tracker, ...] = ()


@dataclass
class Session:
    """One process's work on a run; `done` steps are finished."""

    task: Task
    accelerator: Accelerator
    loop: LoopConfig
    folder: RunFolder
    seed: int
    dataset: SampleSource | StreamedImages
    done: int = 0
    seconds: float = 0.0  # training time of all sessions
    places: dict[str, dict[str, int]] = field(default_factory=dict)  # of a stream's lanes
    evaluation: dict[str, float] = field(default_factory=dict)
    sums: dict[str, list[float]] = field(default_factory=dict)  # name: [sum, count] since last log

    @property
    def result(self) -> dict[str, float]:
        return {**self.evaluation, "seconds": self.seconds}

    def open(self, config: object) -> None:
        """Prepares the task and restores the newest checkpoint, if there is one."""
        steps = self.folder.checkpoints.steps()
        state: dict[str, Any] | None = None
        if steps:
            self.folder.check_config(config)
            state = self.folder.checkpoints.load(steps[-1])
            if state["num_images"] != self.data_size:
                unit = "shards" if isinstance(self.dataset, StreamedImages) else "training images"
                raise ValueError(
                    f"{self.folder.path} was started on {state['num_images']} {unit}, "
                    f"got {self.data_size}: the order of samples would differ"
                )
            self.done, self.seconds = steps[-1], state["seconds"]
            self.evaluation, self.sums = state["evaluation"], state["sums"]
            self.places = state.get("places", {})
        if self.done >= self.loop.steps:
            return
        self.task.prepare(self.accelerator)
        if state is not None:
            self.task.load_state_dict(scatter(state["task"], self.task.state_dict()))
            logger.info("resumed %s after step %d", self.folder.path, self.done)
            if state.get("steps", self.loop.steps) != self.loop.steps:
                logger.warning(
                    "loop.steps was %d and is now %d: schedules that depend on it jump to the new "
                    "curve at step %d",
                    state["steps"],
                    self.loop.steps,
                    self.done,
                )
        self.accelerator.wait_for_everyone()  # every rank has read before the main one writes
        if self.accelerator.is_main_process:
            self.folder.start(config, self.done)
        if self.loop.trackers:
            plain = {key: str(value) for key, value in flatten(to_dict(config)).items()}
            self.accelerator.init_trackers("trackers", config=plain)
        precision, device = self.accelerator.mixed_precision, self.accelerator.device
        logger.info("device %s, mixed precision %s", device, precision)

    @property
    def data_size(self) -> int:
        """Images, or shards of a stream."""
        if isinstance(self.dataset, StreamedImages):
            return self.dataset.split.num_shards
        return len(self.dataset)

    def open_loader(self, num_workers: int) -> None:
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        batch_size = self.loop.batch_size // (world_size * self.loop.accumulation)
        if isinstance(self.dataset, StreamedImages):
            self.loader: Iterator[Batch] = self.dataset.loader(
                batch_size=batch_size,
                seed=self.seed,
                rank=rank,
                world_size=world_size,
                num_workers=num_workers,
                state=self.places,
            )
            return
        self.loader = build_loader(
            self.dataset,
            batch_size=batch_size,
            seed=self.seed,
            start_step=self.done * self.loop.accumulation,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
        )

    def train(self, profile: int | None) -> None:
        meter, watch = Meter(self.loop.batch_size, self.loop.steps), Stopwatch()
        measure = None
        if profile is not None and profile + FIRST_STEP > self.loop.steps - self.done:
            raise ValueError(
                f"steps to profile: got {profile} (allowed: {FIRST_STEP} less than the "
                f"{self.loop.steps - self.done} steps that are left, or fewer)"
            )
        if profile is not None and self.accelerator.is_main_process:
            measure = StepProfile(profile, self.folder.path / "profile.txt")
        bar = tqdm(
            total=self.loop.steps,
            initial=self.done,
            disable=not (self.accelerator.is_main_process and sys.stderr.isatty()),
            dynamic_ncols=True,
        )
        with bar:
            while self.done < self.loop.steps:
                watch()
                with record_function("data"):
                    micro = [next(self.loader) for _ in range(self.loop.accumulation)]
                    waited = watch()
                    micro = [batch.to(self.accelerator.device) for batch in micro]
                self.step(micro)
                took = waited + watch()
                meter.add(took, waited)
                self.seconds += took
                bar.update()
                with record_function("logging"):
                    if self.is_due(self.loop.log_every):
                        self.log(meter, bar)
                meter.add_other("logging", watch())
                if measure is not None:
                    measure()
                with record_function("evaluation"):
                    if self.is_due(self.loop.eval_every):
                        self.evaluate()
                    if self.is_due(self.loop.sample_every):
                        self.draw()
                meter.add_other("evaluation", watch())
                with record_function("saving"):
                    if self.is_due(self.loop.save_every):
                        self.save()
                meter.add_other("saving", watch())
        logger.info("time of this session: %s", time_text(meter.spent))

    def is_due(self, interval: int | None) -> bool:
        is_last = self.done == self.loop.steps
        return is_last or (interval is not None and self.done % interval == 0)

    def step(self, batches: Sequence[Batch]) -> None:
        """One training step; reads the device once for its scalars, which must be finite."""
        torch.manual_seed(hash_integer(self.seed, self.done, self.accelerator.process_index))
        try:
            scalars = self.task.train_step(batches, self.done)
            device = self.accelerator.device
            scalars = {name: value.detach().float().to(device) for name, value in scalars.items()}
            values = torch.stack(list(scalars.values())).tolist()
            for name, value in zip(scalars, values, strict=True):
                if not math.isfinite(value):
                    raise NotFiniteError(f"{name} is {value}")
        except NotFiniteError as error:
            steps = self.folder.checkpoints.steps()
            last = str(self.folder.checkpoints.path(steps[-1])) if steps else "none"
            message = f"step {self.done}: {error}; last good checkpoint: {last}"
            logger.error(message)
            raise RuntimeError(message) from error
        for name, value in zip(scalars, values, strict=True):
            total = self.sums.setdefault(name, [0.0, 0.0])
            total[0] += value
            total[1] += 1
        self.done += 1

    def log(self, meter: Meter, bar: tqdm[Any]) -> None:
        """Means since the last log, over steps and ranks."""
        names = [*self.sums]
        values = [total / count for total, count in self.sums.values()]
        if isinstance(self.loader, StreamLoader):
            names.append("skipped_images")
            values.append(float(self.loader.num_skipped * self.accelerator.num_processes))
        means = torch.tensor(values, device=self.accelerator.device)
        means = self.accelerator.reduce(means, "mean")
        scalars = dict(zip(names, means.tolist(), strict=True))
        self.sums.clear()
        text = progress_text(scalars, meter, self.done, memory_in_use(self.accelerator.device))
        bar.set_postfix_str(text.split("  ", 1)[1])
        logger.info(text)
        speed = {
            "images_per_second": meter.images_per_second,
            "data_wait": meter.data_wait,
            "evaluation_share": meter.share("evaluation"),
            "saving_share": meter.share("saving"),
        }
        meter.restart()
        self.record({"seconds": self.seconds, **speed, **scalars})

    def record(self, scalars: Mapping[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.folder.append_metrics({"step": self.done, **scalars})
        if self.loop.trackers:
            self.accelerator.log(dict(scalars), step=self.done)

    def evaluate(self) -> None:
        torch.manual_seed(hash_integer(self.seed, self.done, EVALUATE))
        self.evaluation = {name: float(v) for name, v in self.task.evaluate(self.done).items()}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in self.evaluation.items())
        logger.info("evaluation after step %d: %s", self.done, shown)
        self.record({f"eval/{name}": value for name, value in self.evaluation.items()})
        self.keep_best()

    def keep_best(self) -> None:
        """Keeps the weights if they are the best so far; says once when they get worse."""
        if (name := self.task.minimized) is None:
            return
        best, value = BestWeights(self.folder.path, name), self.evaluation[name]
        is_main = self.accelerator.is_main_process
        decision = [is_main and best.is_beaten_by(value)]
        if broadcast_object_list(decision)[0]:
            self.task.state_dict()  # makes the average whole on the main process
            if is_main:
                best.keep(self.done, value, self.task.save_pretrained)
        elif is_main:
            warn_of_rise(best, self.folder.metrics(), self.evaluation)

    def draw(self) -> None:
        torch.manual_seed(hash_integer(self.seed, self.done, SAMPLE))
        picture = self.task.sample(self.done)
        if picture is not None and self.accelerator.is_main_process:
            save_image(picture, self.folder.sample_file(self.done))

    def save(self) -> None:
        if isinstance(self.loader, StreamLoader):
            own = [self.loader.state_dict()]  # a list, as gathering joins lists
            self.places = {k: v for part in gather_object(own) for k, v in part.items()}
        state = {
            "task": gather(self.task.state_dict(), keep=self.accelerator.is_main_process),
            "steps": self.loop.steps,
            "num_images": self.data_size,
            "places": self.places,
            "seconds": self.seconds,
            "evaluation": self.evaluation,
            "sums": self.sums,
        }
        if self.accelerator.is_main_process:
            keep = self.loop.keep_checkpoints
            self.folder.checkpoints.save(self.done, state, keep=keep)
            self.task.save_pretrained(self.folder.path)
            if self.task.minimized is not None:
                logger.info(BestWeights(self.folder.path, self.task.minimized).describe(self.done))
        self.accelerator.wait_for_everyone()

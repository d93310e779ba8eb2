"""The one training loop. A `Task` owns the algorithm; `fit` owns everything around it.

Steps are counted from 0; a checkpoint named N holds the state after N steps. The same call again
resumes from the newest checkpoint, bit for bit: the order of samples is a function of (seed, step),
the learning rate of the step, per-sample randomness of each sample's key, and torch's global
generator is seeded from (seed, step, rank) before every step, so no random state needs saving.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.profiler import record_function
from tqdm import tqdm

from lambda24.common.config import Count, config_class, to_dict
from lambda24.common.data.batches import FINGERPRINT, Batch, TrainingData, hash_integer
from lambda24.common.images import save_image
from lambda24.common.optim.gradients import NotFiniteError
from lambda24.common.training.fsdp import gather, scatter
from lambda24.common.training.interruption import StopSignal, only_start
from lambda24.common.training.launch import Precision, build_accelerator
from lambda24.common.training.profiling import FIRST_STEP, StepProfile
from lambda24.common.training.progress import (
    Meter,
    Stopwatch,
    memory_in_use,
    progress_text,
    time_text,
)
from lambda24.common.training.run_folder import BestWeights, RunFolder, flatten, warn_of_rise

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
    batch_size: Count
    accumulation: Count = 1
    precision: Precision = "fp32"
    log_every: Interval = 20
    eval_every: Interval | None = None
    save_every: Interval | None = None
    sample_every: Interval | None = None
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    trackers: tuple[Tracker, ...] = ()


class Task(ABC):
    """An algorithm that `fit` can train."""

    modules: dict[str, nn.Module]  # trainable modules by name, wrapped in place by `prepare`
    compared: tuple[str, ...] = ()  # keys of files that were compared with the run's by contents
    minimized: str | None = None  # the evaluation's scalar whose best weights a run keeps

    @abstractmethod
    def prepare(self, accelerator: Accelerator) -> None:
        """Wraps modules and optimizers; called once, before any state is loaded.

        Give `accelerator.prepare` each module together with its optimizer, as sharding replaces
        the parameters in both.
        """

    @abstractmethod
    def train_step(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        """One optimizer step over the micro-batches; returns detached scalars.

        Calls backward (under `accelerator.no_sync` for all micro-batches but the last), clips with
        `clip_gradients`, sets the learning rate, steps, zeroes gradients and updates averages.
        The names returned are the same on all ranks.
        Batches are on the device; torch's global generator is already seeded for this step.
        """

    @abstractmethod
    def evaluate(self, step: int) -> dict[str, float]:
        """Scalars on held-out data, called on all ranks; `step` optimizer steps are done.

        Leaves the modules in training mode.
        """

    @abstractmethod
    def sample(self, step: int) -> Image.Image | None:
        """A picture for samples/, called on all ranks; None: this task has none.

        Leaves the modules in training mode.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Modules, optimizers, averages: tensors, which may be sharded, and plain numbers only.

        Called on all ranks; after it `EMA.average` is whole on the main process.
        """

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`; tensors come on the CPU, or sharded as `state_dict` has them."""

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """Writes model folders into the run folder; main process, after each checkpoint."""


def fit(
    task: Task,
    data: TrainingData,
    *,
    loop: LoopConfig,
    run: str | Path,
    config: object,
    seed: int,
    num_workers: int = 0,
    profile: int | None = None,
) -> dict[str, float]:
    """Trains `task`, resumes what `run` holds, or returns at once when that is finished.

    Args:
        data: what to train on; see `common.data.dataset.load_training_data`.
        run: run folder, made if absent.
        config: the whole config of the run, written to config.yaml and compared on resume.
        seed: of sample order, augmentation and model-side randomness.
        num_workers: processes that decode; results do not depend on it.
        profile: steps of this session to profile; the table goes to profile.txt of `run`.

    Returns:
        Scalars of the last evaluation and "seconds", the training time over all sessions.

    Raises:
        ValueError: batch size that does not divide, another config or other data in `run`,
            damaged checkpoint, or a `run` that cannot be written.
            Another process that trains in `run`.
        RuntimeError: a loss or gradient is not finite; nothing is saved after that.
        SystemExit: a signal asked to stop; the run is saved and goes on with the same call.
    """
    accelerator = build_accelerator(precision=loop.precision, trackers=loop.trackers, run=run)
    parts = accelerator.num_processes * loop.accumulation
    if loop.batch_size % parts:
        raise ValueError(
            f"loop.batch_size {loop.batch_size} must be divisible by {accelerator.num_processes} "
            f"processes x loop.accumulation {loop.accumulation}"
        )
    folder = RunFolder(run)
    if accelerator.is_main_process:
        _check_writable(folder.path)
    with ExitStack() as stack:
        stack.enter_context(folder.logging(enabled=accelerator.is_main_process))
        if accelerator.is_main_process:
            stack.enter_context(only_start(folder.path))
        stop = stack.enter_context(StopSignal().noted())
        session = Session(task, accelerator, loop, folder, seed, data)
        session.open(config)
        if session.is_finished:
            task.state_dict()  # makes averages whole
            session.write_models()  # a kill may have come before them
            logger.info("%s is already finished: %d steps", folder.path, session.done)
            return session.result
        session.open_batches(num_workers)
        try:
            session.train(profile, stop)
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()
        for warning in data.warnings():
            logger.warning(warning)
        logger.info("%s is finished after %.0f s", folder.path, session.seconds)
        return session.result


@dataclass
class Session:
    """One process's work on a run; `done` steps are finished."""

    task: Task
    accelerator: Accelerator
    loop: LoopConfig
    folder: RunFolder
    seed: int
    data: TrainingData
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
            state = self.folder.checkpoints.load(steps[-1])
            is_same = FINGERPRINT in state.get("data", {}) and FINGERPRINT in self.data.identity
            moved = ("data.path",) if is_same else ()
            self.folder.check_config(config, (*self.task.compared, *moved))
            self.check_data(state)
            self.done, self.seconds = steps[-1], state["seconds"]
            self.evaluation, self.sums = state["evaluation"], self.own_sums(state["sums"])
            self.places = state.get("places", {})
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
        if self.is_finished:
            return
        if self.accelerator.is_main_process:
            with self.folder.writing(needed=0):
                self.folder.start(config, self.done)
        if self.loop.trackers:
            plain = {key: str(value) for key, value in flatten(to_dict(config)).items()}
            self.accelerator.init_trackers("trackers", config=plain)
        precision, device = self.accelerator.mixed_precision, self.accelerator.device
        logger.info("device %s, mixed precision %s", device, precision)

    def own_sums(self, saved: Any) -> dict[str, list[float]]:
        """This process's, or the mean of all that another number of processes had."""
        if isinstance(saved, Mapping):  # earlier versions kept the main process's alone
            return dict(saved)
        if len(saved) == self.accelerator.num_processes:
            own: dict[str, list[float]] = saved[self.accelerator.process_index]
            return own
        return {
            name: [
                sum(values) / len(saved)
                for values in zip(*(own[name] for own in saved), strict=False)
            ]
            for name in saved[0]
        }

    @property
    def is_finished(self) -> bool:
        return self.done >= self.loop.steps

    def check_data(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError when the run was started on other data than these."""
        if state["num_images"] != self.data.size:
            raise ValueError(
                f"{self.folder.path} was started on {state['num_images']} {self.data.unit}, "
                f"got {self.data.size}: the order of samples would differ; use another run folder"
            )
        now = self.data.identity
        for name, before in state.get("data", now).items():
            if before != now.get(name, before):
                raise ValueError(
                    f"{self.folder.path} was started on other data: {name} {before!r}, "
                    f"now {now[name]!r}; use another run folder for these"
                )

    def open_batches(self, num_workers: int) -> None:
        world_size = self.accelerator.num_processes
        self.stream = self.data.batches(
            batch_size=self.loop.batch_size // (world_size * self.loop.accumulation),
            seed=self.seed,
            start_step=self.done * self.loop.accumulation,
            rank=self.accelerator.process_index,
            world_size=world_size,
            num_workers=num_workers,
            places=self.places,
        )

    def train(self, profile: int | None, stop: StopSignal) -> None:
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
                    micro = [next(self.stream) for _ in range(self.loop.accumulation)]
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
                signal_number = self.agreed(stop.number)
                with record_function("saving"):
                    if self.is_due(self.loop.save_every) or signal_number:
                        self.save()
                meter.add_other("saving", watch())
                if signal_number and self.done < self.loop.steps:
                    self.end_by(signal_number)
        logger.info("time of this session: %s", time_text(meter.spent))

    def agreed(self, number: int) -> int:
        """The largest of all processes' numbers, so that all stop after the same step."""
        if self.accelerator.num_processes == 1:
            return number
        own = torch.tensor([number], device=self.accelerator.device)
        return int(self.accelerator.gather(own).max())

    def end_by(self, number: int) -> None:
        name = signal.Signals(number).name
        if self.accelerator.is_main_process:  # one line, whatever the number of processes
            text = "stopped by %s after step %d, which is saved; the same command goes on"
            logger.warning(text, name, self.done)
        raise SystemExit(128 + number)

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
        if self.stream.num_skipped is not None:
            names.append("skipped_images")
            values.append(float(self.stream.num_skipped * self.accelerator.num_processes))
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
                with self.folder.writing(self.needed):
                    best.keep(self.done, value, self.task.save_pretrained)
        elif is_main:
            warn_of_rise(best, self.folder.metrics(), self.evaluation)

    def draw(self) -> None:
        torch.manual_seed(hash_integer(self.seed, self.done, SAMPLE))
        picture = self.task.sample(self.done)
        if picture is not None and self.accelerator.is_main_process:
            file = self.folder.sample_file(self.done)
            with self.folder.writing(picture.width * picture.height * 3, file):
                save_image(picture, file)

    def save(self) -> None:
        own = [self.stream.state_dict()]  # a list, as gathering joins lists
        self.places = {k: v for part in gather_object(own) for k, v in part.items()}
        state = {
            "task": gather(self.task.state_dict(), keep=self.accelerator.is_main_process),
            "steps": self.loop.steps,
            "num_images": self.data.size,
            "data": self.data.identity,
            "places": self.places,
            "seconds": self.seconds,
            "evaluation": self.evaluation,
            "sums": gather_object([self.sums]),
        }
        if self.accelerator.is_main_process:
            keep = self.loop.keep_checkpoints
            self.folder.checkpoints.save(self.done, state, keep=keep)
        self.write_models()

    @property
    def needed(self) -> int:
        """Bytes of a model folder, about: its weights, in whatever they are trained in."""
        parts = self.task.modules.values()
        return sum(p.numel() * p.itemsize for part in parts for p in part.parameters())

    def write_models(self) -> None:
        """The model folders of the weights at hand; `gather` has made averages whole."""
        if self.accelerator.is_main_process:
            with self.folder.writing(self.needed):
                self.task.save_pretrained(self.folder.path)
            if self.task.minimized is not None:
                logger.info(BestWeights(self.folder.path, self.task.minimized).describe(self.done))
        self.accelerator.wait_for_everyone()


def _check_writable(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run):
            pass
    except OSError as error:
        raise ValueError(f"run {str(run)!r} cannot be written: {error.strerror}") from error

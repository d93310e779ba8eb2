"""The one training loop. A `Task` owns the algorithm; `fit` owns everything around it.

Steps are counted from 0; a checkpoint named N holds the state after N steps. The same call again
resumes from the newest checkpoint, bit for bit: the order of samples is a function of (seed, step),
the learning rate of the step, per-sample randomness of each sample's key, and torch's global
generator is seeded from (seed, step, rank) before every step, so no random state needs saving.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from lambda24.common.data.batches import SampleSource
from lambda24.common.data.dataset import ImageDataset
from lambda24.common.data.streaming import StreamedImages
from lambda24.common.training.launch import build_accelerator
from lambda24.common.training.session import LoopConfig, Session
from lambda24.common.training.task import Task
from lambda24.common.training.tracking import RunFolder

__all__ = ["LoopConfig", "Task", "fit"]

logger = logging.getLogger(__name__)


def fit(
    task: Task,
    dataset: SampleSource | StreamedImages,
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
        dataset: what to train on; see `common.data.dataset.load_training_data`.
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
        RuntimeError: a loss or gradient is not finite; nothing is saved after that.
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
    with folder.logging(enabled=accelerator.is_main_process):
        session = Session(task, accelerator, loop, folder, seed, dataset)
        session.open(config)
        if session.done >= loop.steps:
            logger.info("%s is already finished: %d steps", folder.path, session.done)
            return session.result
        session.open_loader(num_workers)
        try:
            session.train(profile)
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()
        if isinstance(dataset, ImageDataset) and dataset.num_skipped:
            text = "%d of %d training images are unreadable: others stood in for them"
            logger.warning(text, dataset.num_skipped, len(dataset))
        logger.info("%s is finished after %.0f s", folder.path, session.seconds)
        return session.result


def _check_writable(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run):
            pass
    except OSError as error:
        raise ValueError(f"run {str(run)!r} cannot be written: {error.strerror}") from error

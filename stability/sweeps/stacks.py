"""Trains the trials of a sweep in stacks, in one process of StackedLauncher. Each job gets the result of its trial."""

import json
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from stability.config.hydra import register_schema
from stability.config.schema import Config
from stability.core.errors import StabilityError, write_error
from stability.core.files import ERROR
from stability.sweeps.sweep_trial import is_finished, objective, trial_in_sweep

if TYPE_CHECKING:  # PyTorch takes seconds
    import torch

    from stability.data.records import Dataset
    from stability.trials.training import OpenData

_FORMAT = logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s")  # as Hydra writes it


@dataclass
class Job:
    """A job of a sweep, as Hydra composed it, with the result for Hydra."""

    composed: DictConfig
    task: DictConfig  # `composed` without Hydra's own part
    settings: Config
    folder: Path
    result: JobReturn

    @property
    def has_ended(self) -> bool:
        """Whether the trial is finished or has crashed."""
        return (self.folder / ERROR).exists() or is_finished(self.settings, self.folder)


Stack = dict[Path, list[Job]]  # jobs by folder: those with the same folder are the same trial


@dataclass(frozen=True)
class StackTrainer:
    """Trains trials of a sweep in stacks. It can be pickled and sent to another process.

    Attributes:
        context: Hydra's context. Its callbacks are called for every trial.
        task: The function that Hydra would call for a job. It is only passed to the callbacks.
        size: The number of trials in a stack. None for as many as fit into memory and the device can use.
    """

    context: HydraContext
    task: TaskFunction
    size: int | None

    def work(self, stacks: list[Stack], workers: int, number: int, sharing: int) -> dict[Path, str]:
        """Train one worker's part of the trials, then trials that other workers have not started, the last first.

        A part is a run of successive trials, because most of these share a seed and so their batches.

        Args:
            stacks: All trials of the sweep, the same for every worker.
            workers: The number of workers.
            number: The number of this worker, from 0.
            sharing: The number of workers on the same device.

        Returns:
            {folder: reason} of the trials that could not be trained.
        """
        register_schema()
        setup_globals()
        reasons: dict[Path, str] = {}
        trials = [(index, folder) for index, stack in enumerate(stacks) for folder in stack]
        begin, end = (round(len(trials) * i / workers) for i in (number, number + 1))
        for part in (trials[begin:end], [*reversed(trials[:begin] + trials[end:])]):
            for index, trials_of_stack in groupby(part, key=itemgetter(0)):
                reasons |= self.train({folder: stacks[index][folder] for _, folder in trials_of_stack}, sharing)
        return reasons

    def train(self, stack: Stack, sharing: int = 1) -> dict[Path, str]:
        """Train the trials of one stack.

        Args:
            stack: The trials, which have the same `stack_key`.
            sharing: The number of processes on the same device.

        Returns:
            {folder: reason} of the trials that could not be trained.
        """
        from stability.trials.scheduler import train_together  # late: PyTorch takes seconds

        open_data, reasons = _open_once(), {}
        trials = [self._trial(jobs, open_data) for jobs in stack.values()]
        results = train_together(trials, size=self.size, sharing=sharing)
        for (folder, jobs), result in zip(stack.items(), results, strict=True):
            if isinstance(result, StabilityError):
                set_result(jobs, math.nan)
                reasons[folder] = str(result)
            elif isinstance(result, BaseException):
                raise result
        return reasons

    async def _trial(self, jobs: list[Job], open_data: "OpenData") -> float:
        """Train a trial, as a coroutine for the scheduler. All `jobs` configure this trial, and all get its result."""
        job = jobs[0]
        self.context.callbacks.on_job_start(config=job.composed, task_function=self.task)
        try:
            if job.has_ended:  # another process trained it
                value = math.nan if (job.folder / ERROR).exists() else objective(job.folder)
            else:
                _write_hydra_files(job)
                with _log_into(job.folder / f"{job.result.task_name}.log"):
                    value = await trial_in_sweep(job.task, job.folder, open_data)
            set_result(jobs, value)
            return value
        except BaseException as error:
            failure = write_error(job.folder, error) if isinstance(error, OSError) else error
            job.result.return_value, job.result.status = failure, JobStatus.FAILED
            raise failure from error.__cause__
        finally:
            self.context.callbacks.on_job_end(config=job.composed, job_return=job.result)


def stack_key(settings: Config) -> str:
    """Return a text that is equal for two trials if they can share a stack. Commands are run one after another."""
    if settings.runs_command:
        return settings.trainer.kind
    parts = (settings.model, settings.batch, settings.precision, settings.data)
    # The trials of a stack share their data. With `exclude`, the longest cut decides which utterances are left out.
    cut = settings.aug.max_cut if settings.data.on_bad_utterance == "exclude" else 0
    return json.dumps([settings.device, cut, *(asdict(part) for part in parts)])


def set_result(jobs: Iterable[Job], value: float) -> None:
    """Set the value that jobs return to the sweeper. They all configure the same trial."""
    for job in jobs:
        job.result.return_value, job.result.status = value, JobStatus.COMPLETED


def _open_once() -> "OpenData":
    """Return a function that opens the data of trials with the same `stack_key`, once for each `aug.max_cut`.

    No other setting that differs among these trials changes the data.
    """
    from stability.trials.setup import open_data

    opened: dict[int, Dataset] = {}

    def open_or_share(settings: Config, device: "torch.device") -> "Dataset":
        if settings.aug.max_cut not in opened:
            opened[settings.aug.max_cut] = open_data(settings, device)
        return opened[settings.aug.max_cut]

    return open_or_share


def _write_hydra_files(job: Job) -> None:
    """Write the files that Hydra writes for a job."""
    if job.composed.hydra.output_subdir is None:
        return
    folder = job.folder / job.composed.hydra.output_subdir
    folder.mkdir(exist_ok=True)
    for name, content in (
        ("config", job.task),
        ("hydra", job.result.hydra_cfg),
        ("overrides", job.composed.hydra.overrides.task),
    ):
        OmegaConf.save(content, folder / f"{name}.yaml")


_log: ContextVar[logging.Handler | None] = ContextVar("_log", default=None)  # the log of the trial that is running now


@contextmanager
def _log_into(path: Path) -> Iterator[None]:
    """Write what this trial logs into a file, without what the other trials of its stack log."""
    root, handler = logging.getLogger(), logging.FileHandler(path)
    handler.setFormatter(_FORMAT)
    # The scheduler runs each trial in a context of its own, so this variable always has the log of the running trial.
    _log.set(handler)
    handler.addFilter(lambda record: _log.get() is handler)
    root.addHandler(handler)
    logging.getLogger("stability").setLevel(logging.INFO)  # as in `conf/config.yaml`, which a worker does not read
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()

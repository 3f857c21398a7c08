"""A Hydra launcher that trains the trials of a sweep together, in stacks: `hydra/launcher=stacked`.

Trials share a stack if they have the same model, batch, precision, data and device. Stacks of other kinds follow, one
after another. Every trial has its folder, its `.hydra` files and its log as with any launcher, and its result is the
same as if it had been trained alone.

With several workers, each is a process that trains its part of the trials, then trials that other workers have not
started. The lock in a trial's folder shows that a process is training it, and the files there show how it ended.
"""

import copy
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from stability.config.hydra import register_schema
from stability.config.schema import Config
from stability.core.errors import StabilityError, write_error
from stability.core.files import CONFIG, ERROR, VERDICT, write_atomically
from stability.sweeps.jobs import compose_job
from stability.sweeps.plan import check_count
from stability.sweeps.sweep_trial import is_busy, is_finished, objective, trial_in_sweep
from stability.tracking.api import open_tracker

if TYPE_CHECKING:
    from stability.data.records import Dataset

_LOG = logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s")  # as Hydra writes it


@dataclass
class _Job:
    config: DictConfig
    task: DictConfig  # without Hydra's own part
    settings: Config
    folder: Path
    result: JobReturn


_Stack = dict[Path, list[_Job]]  # jobs with one folder are one trial


class StackedLauncher(Launcher):
    """Train the trials of a sweep in stacks: `hydra/launcher=stacked`.

    Args:
        size: The number of trials in a stack. None for as many as memory holds and the device makes use of.
        workers: The number of processes that train stacks at the same time.
        cluster: `local` for processes on this machine, `slurm` for jobs on a cluster.
        parameters: Parameters of submitit's jobs, by name.

    Raises:
        StabilityError: A setting is wrong.
    """

    def __init__(self, size: int | None, workers: int, cluster: str, parameters: Mapping[str, Any]) -> None:
        check_count("hydra.launcher.size", size, or_null=True)
        check_count("hydra.launcher.workers", workers)
        if not isinstance(parameters, Mapping):
            raise StabilityError(
                f"hydra.launcher.parameters={parameters}: give names with their values, as in {{timeout_min: 600}}."
            )
        if cluster not in ("local", "slurm"):
            raise StabilityError(f"hydra.launcher.cluster={cluster}: give local or slurm.")
        self._size, self._workers, self._cluster, self._parameters = size, workers, cluster, parameters

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra composed."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train the trials of some jobs.

        Args:
            job_overrides: The overrides of each job.
            initial_job_idx: The number of the first job in the sweep.

        Returns:
            The objective of every job (see `sweep_trial.objective`). NaN for a job that is invalid, crashed or could
            not be trained: such a job does not stop the others. The callbacks receive its error.
        """
        setup_globals()
        stacks: dict[str, _Stack] = {}
        results = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            try:
                job = self._job(number, overrides)
                if is_finished(job.settings, job.folder):
                    _set_results([job], objective(job.folder))
                else:
                    _clear_earlier(job)
                    stacks.setdefault(kind(job.settings), {}).setdefault(job.folder, []).append(job)
                results.append(job.result)
            except StabilityError as error:
                result = JobReturn([*overrides])
                self._report_failure(result, error)
                results.append(result)
        if self._workers == 1 and self._cluster == "local":
            for jobs in stacks.values():
                self._train(jobs)
        elif stacks:
            self._train_in_workers([*stacks.values()])
        return results

    def _report_failure(self, result: JobReturn, error: StabilityError) -> None:
        """Pass the error of a job to the callbacks, and NaN to the sweeper, which an error would stop."""
        result.return_value, result.status = error, JobStatus.FAILED
        self._context.callbacks.on_job_end(config=self._config, job_return=result)
        result.return_value, result.status = math.nan, JobStatus.COMPLETED

    def _job(self, number: int, overrides: Sequence[str]) -> _Job:
        composed, trial = compose_job(self._config, overrides, number)
        with open_dict(composed):
            composed.hydra.runtime.output_dir = str(trial.folder.absolute())
        task, hydra = copy.deepcopy(composed), OmegaConf.masked_copy(composed, ["hydra"])
        with open_dict(task):
            del task["hydra"]
        own = [*composed.hydra.overrides.task]
        result = JobReturn(own, task, hydra, str(Path.cwd()), composed.hydra.job.name)
        return _Job(composed, task, trial.config, trial.folder, result)

    def _train_in_workers(self, stacks: list[_Stack]) -> None:
        from stability.sweeps.workers import run_in_workers  # late: PyTorch takes seconds

        jobs = {folder: jobs for stack in stacks for folder, jobs in stack.items()}
        count = min(self._workers, len(jobs))
        logs = Path(self._config.hydra.sweep.dir) / ".submitit"
        done = partial(_are_done, jobs)
        work = partial(self._work, stacks, count)
        results = run_in_workers(
            work, done, count=count, cluster=self._cluster, folder=logs, parameters=self._parameters
        )
        killed = None in results
        reasons: dict[Path, str] = {folder: reason for own in results if own for folder, reason in own.items()}
        for folder, same in jobs.items():
            if folder in reasons and not (folder / VERDICT).exists():  # another worker may have trained it
                self._report_failure(same[0].result, StabilityError(reasons[folder]))
                _set_results(same, math.nan)
            else:
                _set_results(same, _objective_after_workers(folder, same[0].settings, killed=killed))

    def _work(self, stacks: list[_Stack], count: int, number: int, sharing: int) -> dict[Path, str]:
        """Train as worker `number`: its own part of the trials, then what others have not started, the last first.

        A part is a row of neighbours, because these mostly share a seed and so their batches.

        Returns:
            Why a trial could not be trained, by its folder.
        """
        register_schema()
        setup_globals()
        reasons: dict[Path, str] = {}
        trials = [(stack, folder) for stack in range(len(stacks)) for folder in stacks[stack]]
        begin, end = (round(len(trials) * i / count) for i in (number, number + 1))
        for part in (trials[begin:end], [*reversed(trials[:begin] + trials[end:])]):
            for stack, trials_of_stack in groupby(part, key=itemgetter(0)):
                reasons |= self._train({folder: stacks[stack][folder] for _, folder in trials_of_stack}, sharing)
        return reasons

    def _train(self, stack: _Stack, sharing: int = 1) -> dict[Path, str]:
        """Train the trials of one stack. Return why some could not be trained, by folder."""
        from stability.trials.scheduler import train_together  # late: PyTorch takes seconds

        open_data, reasons = _open_once(), {}
        trials = [self._trial(jobs, open_data) for jobs in stack.values()]
        results = train_together(trials, size=self._size, sharing=sharing)
        for (folder, jobs), result in zip(stack.items(), results, strict=True):
            if isinstance(result, StabilityError):
                _set_results(jobs, math.nan)
                reasons[folder] = str(result)
            elif isinstance(result, BaseException):
                raise result
        return reasons

    async def _trial(self, jobs: list[_Job], open_data: "Callable[[Config], Dataset]") -> float:
        """Run the trial that all these jobs are, as a coroutine for the scheduler."""
        job = jobs[0]
        self._context.callbacks.on_job_start(config=job.config, task_function=self._task)
        try:
            if _are_done({job.folder: jobs}):  # another process trained it
                value = math.nan if (job.folder / ERROR).exists() else objective(job.folder)
            else:
                _write_hydra_files(job)
                with _log_into(job.folder / f"{job.result.task_name}.log"):
                    value = await trial_in_sweep(job.task, job.folder, open_data)
            _set_results(jobs, value)
            return value
        except BaseException as error:
            shown = write_error(job.folder, error) if isinstance(error, OSError) else error
            job.result.return_value, job.result.status = shown, JobStatus.FAILED
            raise shown from error.__cause__
        finally:
            self._context.callbacks.on_job_end(config=job.config, job_return=job.result)


def _are_done(trials: _Stack) -> bool:
    """Whether each of the trials is finished or has crashed."""
    return all((folder / ERROR).exists() or is_finished(same[0].settings, folder) for folder, same in trials.items())


def _set_results(jobs: Sequence[_Job], value: float) -> None:
    """Give the sweeper the objective of a trial, for each of its jobs."""
    for job in jobs:
        job.result.return_value, job.result.status = value, JobStatus.COMPLETED


def _clear_earlier(job: _Job) -> None:
    """Delete the error of an earlier run, and with `fresh` all its results: what is there later is of this sweep."""
    from stability.trials.setup import clear  # late: PyTorch takes seconds

    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        if not is_busy(job.folder):
            (job.folder / ERROR).unlink(missing_ok=True)
            if job.settings.fresh:
                clear(job.folder)
    except OSError as error:
        raise write_error(job.folder, error) from error
    job.task.fresh = job.settings.fresh = False


def _objective_after_workers(folder: Path, settings: Config, *, killed: bool) -> float:
    """Read the objective of a trial after all workers have ended. `killed`: one was killed and not replaced."""
    if is_busy(folder) or (folder / ERROR).exists():
        return math.nan
    if (folder / VERDICT).exists():
        with suppress(StabilityError):  # a verdict that cannot be read: the report says so
            return objective(folder)
    elif killed:
        reason = "Every worker that trained it was killed, perhaps because memory ran out: see .submitit in the study."
        write_atomically(folder / ERROR, f"{reason}\n".encode())
        if (folder / CONFIG).exists():
            open_tracker(settings.tracking, folder, outputs=Path(settings.outputs)).abort("KILLED")
    return math.nan


def is_stacked(launcher: DictConfig) -> bool:
    """Return whether Hydra's settings of a launcher choose StackedLauncher."""
    return str(launcher._target_).endswith(f".{StackedLauncher.__name__}")


def kind(settings: Config) -> str:
    """Return a text that is the same for trials that can share a stack, and differs for others."""
    parts = (settings.model, settings.batch, settings.precision, settings.data)
    # The trials of a stack share their data. With `exclude`, the longest cut decides which utterances are in them.
    cut = settings.aug.max_cut if settings.data.on_bad_utterance == "exclude" else 0
    return json.dumps([settings.device, cut, *(asdict(part) for part in parts)])


def _open_once() -> "Callable[[Config], Dataset]":
    """An `open_data` for trials of one `kind`, which opens each data set once. Only the cut can make them differ."""
    from stability.trials.setup import open_data

    opened: dict[int, Dataset] = {}

    def data(settings: Config) -> "Dataset":
        if settings.aug.max_cut not in opened:
            opened[settings.aug.max_cut] = open_data(settings)
        return opened[settings.aug.max_cut]

    return data


def _write_hydra_files(job: _Job) -> None:
    """Write the files that Hydra writes for a job."""
    if job.config.hydra.output_subdir is None:
        return
    folder = job.folder / job.config.hydra.output_subdir
    folder.mkdir(exist_ok=True)
    for name, content in (
        ("config", job.task),
        ("hydra", job.result.hydra_cfg),
        ("overrides", job.config.hydra.overrides.task),
    ):
        OmegaConf.save(content, folder / f"{name}.yaml")


_log: ContextVar[logging.Handler | None] = ContextVar("_log", default=None)  # the log of the trial that runs


@contextmanager
def _log_into(path: Path) -> Iterator[None]:
    """Log into a file what this trial logs, and nothing of the other trials in its stack."""
    root, handler = logging.getLogger(), logging.FileHandler(path)
    handler.setFormatter(_LOG)
    # The scheduler runs each trial in a context of its own, so each finds its own handler here.
    _log.set(handler)
    handler.addFilter(lambda record: _log.get() is handler)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()

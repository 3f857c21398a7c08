"""A Hydra launcher that trains the trials of a sweep together, in stacks: `hydra/launcher=stacked`.

Trials share a stack if they have the same model, batch, precision, data and device. Stacks of other kinds follow, one
after another. Every trial has its folder, its `.hydra` files and its log as with any launcher, and its result is the
same as if it had been trained alone.

With several workers, each is a process that trains its part of the trials, then trials that other workers have not
started. The lock in a trial's folder shows that a process is training it, and the files there show how it ended.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from stability.core.errors import StabilityError, write_error
from stability.core.files import CONFIG, ERROR, LOCK, VERDICT, write_atomically
from stability.core.locks import is_locked
from stability.sweeps.jobs import compose_job
from stability.sweeps.plan import check_count
from stability.sweeps.stacks import Job, Stack, StackTrainer, set_result, stack_key
from stability.sweeps.sweep_trial import is_finished, objective
from stability.tracking.api import open_tracker


class StackedLauncher(Launcher):
    """Train the trials of a sweep in stacks: `hydra/launcher=stacked`.

    Args:
        size: The number of trials in a stack. None for as many as fit into memory and the device can use.
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
        """Keep the context and the configuration that Hydra passes."""
        self._context, self._config = hydra_context, config
        self._trainer = StackTrainer(hydra_context, task_function, self._size)

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
        stacks: dict[str, Stack] = {}
        results = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            try:
                job = self._make_job(number, overrides)
                if is_finished(job.settings, job.folder):
                    set_result([job], objective(job.folder))
                else:
                    _clear_earlier(job)
                    stacks.setdefault(stack_key(job.settings), {}).setdefault(job.folder, []).append(job)
                results.append(job.result)
            except StabilityError as error:
                result = JobReturn([*overrides])
                self._report_failure(result, error)
                results.append(result)
        if self._workers == 1 and self._cluster == "local":
            for stack in stacks.values():
                self._trainer.train(stack)
        elif stacks:
            self._train_in_workers([*stacks.values()])
        return results

    def _report_failure(self, result: JobReturn, error: StabilityError) -> None:
        """Pass the error of a job to the callbacks, and NaN to the sweeper: an error would stop the sweeper."""
        result.return_value, result.status = error, JobStatus.FAILED
        self._context.callbacks.on_job_end(config=self._config, job_return=result)
        result.return_value, result.status = math.nan, JobStatus.COMPLETED

    def _make_job(self, number: int, overrides: Sequence[str]) -> Job:
        composed, trial = compose_job(self._config, overrides, number)
        with open_dict(composed):
            composed.hydra.runtime.output_dir = str(trial.folder.absolute())
        task = copy.deepcopy(composed)
        with open_dict(task):
            del task["hydra"]
        result = JobReturn(
            overrides=[*composed.hydra.overrides.task],
            cfg=task,
            hydra_cfg=OmegaConf.masked_copy(composed, ["hydra"]),
            working_dir=str(Path.cwd()),
            task_name=composed.hydra.job.name,
        )
        return Job(composed=composed, task=task, settings=trial.config, folder=trial.folder, result=result)

    def _train_in_workers(self, stacks: list[Stack]) -> None:
        from stability.sweeps.workers import run_in_workers  # late: PyTorch takes seconds

        trials = {folder: jobs for stack in stacks for folder, jobs in stack.items()}
        count = min(self._workers, len(trials))
        results = run_in_workers(
            partial(self._trainer.work, stacks, count),
            lambda: all(jobs[0].has_ended for jobs in trials.values()),
            count=count,
            cluster=self._cluster,
            folder=Path(self._config.hydra.sweep.dir) / ".submitit",
            parameters=self._parameters,
        )
        killed = None in results
        reasons: dict[Path, str] = {folder: reason for own in results if own for folder, reason in own.items()}
        for folder, jobs in trials.items():
            if folder in reasons and not (folder / VERDICT).exists():  # another worker may have trained it
                self._report_failure(jobs[0].result, StabilityError(reasons[folder]))
                set_result(jobs, math.nan)
            else:
                set_result(jobs, _objective_after_workers(jobs[0], killed=killed))


def is_stacked(launcher: DictConfig) -> bool:
    """Return whether Hydra's settings of a launcher choose StackedLauncher."""
    return str(launcher._target_).endswith(f".{StackedLauncher.__name__}")


def _clear_earlier(job: Job) -> None:
    """Delete the error of an earlier run, and with `fresh` all its results. What is there later is from this sweep."""
    from stability.trials.setup import clear  # late: PyTorch takes seconds

    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        if not is_locked(job.folder / LOCK):
            (job.folder / ERROR).unlink(missing_ok=True)
            if job.settings.fresh:
                clear(job.folder)
    except OSError as error:
        raise write_error(job.folder, error) from error
    job.task.fresh = job.settings.fresh = False  # done: a worker that continues the trial must not clear it again


def _objective_after_workers(job: Job, *, killed: bool) -> float:
    """Read the objective of a trial after all workers have ended. `killed`: a worker was killed and not replaced."""
    folder = job.folder
    if is_locked(folder / LOCK) or (folder / ERROR).exists():
        return math.nan
    if (folder / VERDICT).exists():
        with suppress(StabilityError):  # a verdict that cannot be read: the report says so
            return objective(folder)
    elif killed:
        reason = "Every worker that trained it was killed, perhaps because memory ran out: see .submitit in the study."
        write_atomically(folder / ERROR, f"{reason}\n".encode())
        if (folder / CONFIG).exists():
            open_tracker(job.settings.tracking, folder, outputs=Path(job.settings.outputs)).abort("KILLED")
    return math.nan

"""A launcher around the launcher of an app's sweep: it runs the jobs that are not finished, and no other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from stability.app.ending import read_returned
from stability.app.jobs import AppJob, Jobs
from stability.core.errors import StabilityError
from stability.core.files import LOCK
from stability.core.locks import is_locked


class SkippingLauncher(Launcher):
    """Runs the jobs that are not finished with another launcher, each in the folder that it has by what it is.

    Args:
        inner: The launcher of the app, which has been set up.
        jobs: The jobs of the sweep.
        goes_on: Whether a job that crashed is no error for the sweeper. It gets NaN in its place.
    """

    def __init__(self, inner: Launcher, jobs: Jobs, *, goes_on: bool) -> None:
        self._inner, self._jobs, self._goes_on = inner, jobs, goes_on

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Do nothing: the other launcher is set up."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs that are not finished.

        Args:
            job_overrides: The overrides of each job.
            initial_job_idx: The number of the first job in the sweep.

        Returns:
            What each job returned, those that were finished before included. NaN for one that another process runs.
        """
        jobs = [self._jobs.find(overrides) for overrides in job_overrides]
        found = {job.folder: result for job in jobs if (result := _earlier_result(job)) is not None}
        to_do = {job.folder: job for job in jobs if job.folder not in found}
        if to_do:
            launched = self._inner.launch([[*job.overrides] for job in to_do.values()], initial_job_idx)
            found |= zip(to_do, map(self._passed_on, launched), strict=True)
        return [found[job.folder] for job in jobs]

    def _passed_on(self, result: JobReturn) -> JobReturn:
        if self._goes_on and result.status is JobStatus.FAILED:
            result.return_value, result.status = math.nan, JobStatus.COMPLETED
        return result


@dataclass(frozen=True)
class EndsJobOnly:
    """The function of an app. `sys.exit` in it ends the job, and not the sweep. Processes of jobs can be sent it.

    Args:
        function: The function.
    """

    function: TaskFunction

    def __call__(self, config: Any) -> Any:
        """Run a job.

        Raises:
            StabilityError: The job exited with an error.
        """
        try:
            return self.function(config)
        except SystemExit as end:
            if end.code in (None, 0):
                return None
            raise StabilityError(f"sys.exit({end.code!r}) ended it") from end


def _earlier_result(job: AppJob) -> JobReturn | None:
    """The result of a job that is finished, or that another process runs; None if it is to be run."""
    returned = read_returned(job.folder)
    if returned is None and not is_locked(job.folder / LOCK):
        return None
    result = JobReturn(overrides=[*job.overrides], status=JobStatus.COMPLETED)
    result.return_value = math.nan if returned is None else returned.value
    return result

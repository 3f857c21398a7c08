"""The jobs of somebody's Hydra app: each folder with `.hydra/config.yaml` is a run, with the logs in it."""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from stability.analysis.trial import Trial
from stability.analysis.trials import NoTrial, read_trial
from stability.analysis.yaml_files import job_settings
from stability.core.errors import StabilityError
from stability.core.files import CONFIG, HYDRA_CONFIG, VERDICT
from stability.sources.task import Run, Task, natural, read_log


def find_jobs(folder: Path) -> list[Path]:
    """Return the folders of the jobs at and below a folder, in the order of their names, with numbers by their size."""
    return sorted(_jobs(folder), key=natural)


def tasks(folder: Path, names: Mapping[str, str]) -> list[Task]:
    """Return a task for each job in a folder. A job with a verdict has been judged; the others are by their logs."""
    return [Task(job, partial(_trial, folder, job, names)) for job in find_jobs(folder)]


def _jobs(folder: Path) -> Iterator[Path]:
    for place, inner, files in os.walk(folder):
        if ".hydra" in inner and Path(place, HYDRA_CONFIG).is_file():
            if CONFIG not in files:
                yield Path(place)
            inner.clear()  # what is below belongs to the job


def _trial(folder: Path, job: Path, names: Mapping[str, str]) -> Trial:
    if (job / VERDICT).exists():
        try:
            return read_trial(job)
        except NoTrial as reason:
            raise StabilityError(str(reason)) from None
    inside = job.relative_to(folder).as_posix()
    name = job.resolve().name if inside == "." else inside
    return Run(name, job_settings(job), partial(read_log, job, names), place=job).task.trial()

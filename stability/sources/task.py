"""Turns somebody's runs into trials: reads the log of each, judges it, and measures its responses.

A run takes some milliseconds. Many runs are shared among processes.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from stability.analysis.settings import levels_of
from stability.analysis.trial import Record, Trial
from stability.core.errors import StabilityError
from stability.core.files import exists
from stability.diagnosis.judge_log import judge_recording
from stability.diagnosis.readers import Recording, read_runs
from stability.diagnosis.readers.folder import may_be_log
from stability.diagnosis.responses import measured

MANY = 500  # runs, from which on several processes are faster than one: they take seconds to start
_CHUNK = 20  # runs that a process takes at once
_KNOWN = re.compile(r" Known names are.*?\.(?= Explain|$)", re.DOTALL)  # in a message on a log: all that we know


class Task(NamedTuple):
    """How to make a trial of a run.

    Attributes:
        place: The folder or file of the run, or its name as a path: what a message calls it.
        trial: Makes the trial. It raises StabilityError if the run is none.
    """

    place: Path
    trial: Callable[[], Trial]


@dataclass(frozen=True)
class Run:
    """A run of somebody else's program.

    Attributes:
        name: Its name.
        settings: Its settings, as they were found.
        read: Reads its log. It raises StabilityError if there is none.
        place: The folder or file that it is read from; None if it is in a tracker.
        page: The address of its page in a tracker.
    """

    name: str
    settings: Mapping[str, Any]
    read: Callable[[], Recording]
    place: Path | None = None
    page: str = field(default="")

    @property
    def task(self) -> Task:
        """The task that makes a trial of the run."""
        return Task(self.place or Path(self.name), partial(_trial, self))


def do(tasks: Sequence[Task]) -> tuple[list[Trial], list[tuple[Path, str]]]:
    """Make the trials. Return them in the order of their tasks; and the places of runs that are none, each with why."""
    trials, left_out = list[Trial](), list[tuple[Path, str]]()
    for task, found in zip(tasks, _results(tasks), strict=True):
        if isinstance(found, Trial):
            trials.append(found)
        else:
            left_out.append((task.place, found))
    return trials, left_out


def read_log(path: Path, names: Mapping[str, str]) -> Recording:
    """Read the log of one run, a file or a folder. Of several trainings in it, the one with the most readings counts.

    Raises:
        StabilityError: There is none, or it contains no training.
    """
    if not exists(path):
        raise StabilityError("its log does not exist")
    if path.is_dir() and not any(map(may_be_log, path.rglob("*"))):
        raise StabilityError("it has no log")
    try:
        return most_readings(read_runs(path, names=names))
    except StabilityError as error:
        # Without its place, the reason is the same for all runs that lack the same.
        text = str(error).replace(f"{path}/", "").replace(str(path), "its log")
        raise StabilityError(text) from None


def most_readings(found: Sequence[Recording]) -> Recording:
    """Return the recording with the most readings, of equals the last one."""
    return max(reversed(found), key=lambda r: int(r.signals.measured.sum() + r.validation.measured.sum()))


def natural(path: Path) -> list[str | int]:
    """Return the key that sorts paths by their names, with numbers by their size."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def _results(tasks: Sequence[Task]) -> Iterator[Trial | str]:
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)
    if len(tasks) < MANY or workers == 1:
        yield from map(_result, tasks)
        return
    # A forked process would inherit the threads of this one.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_result, tasks, chunksize=_CHUNK)


def _result(task: Task) -> Trial | str:
    try:
        return task.trial()
    except StabilityError as error:
        return _KNOWN.sub("", str(error)).removesuffix(".")
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _trial(run: Run) -> Trial:
    recording = run.read()
    verdict = judge_recording(recording)
    responses = measured(recording.signals, recording.validation, outcome=verdict.outcome, cause=verdict.cause)
    return Trial(
        name=run.name,
        factors=levels_of(run.settings),
        seed=None,
        metric=recording.metric,
        ours=False,
        folder=run.place,
        page=run.page,
        read=partial(_record, run.read),
        **responses,
    )


def _record(read: Callable[[], Recording]) -> Record:
    recording = read()
    return Record(recording.signals, recording.validation, judge_recording(recording))

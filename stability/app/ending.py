"""What is kept of a job in its folder when it ends: its verdict, what it returned, or why it crashed."""

import json
import math
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from stability.core.errors import StabilityError
from stability.core.files import ERROR, FIGURE, RETURNED, VERDICT, write_atomically
from stability.core.text import load_json, plain
from stability.diagnosis.judge_log import judge_recording
from stability.diagnosis.readers import read_log
from stability.diagnosis.results import write_results
from stability.watch.job import Job

_NO_MONITOR = "no Monitor watched it, and its folder has no log that can be read"


@dataclass(frozen=True)
class Returned:
    """What is kept of a job that is finished.

    Attributes:
        value: What it returned; None if that was nothing, or no number, text, list or dictionary of them.
        no_verdict: Why it has no verdict; empty if it has one.
    """

    value: Any
    no_verdict: str


def clear(folder: Path) -> None:
    """Delete the results of an earlier run of a job: it begins again. Its checkpoints and logs are its own affair."""
    for name in (RETURNED, ERROR, VERDICT, FIGURE):
        (folder / name).unlink(missing_ok=True)


def keep_results(job: Job, value: Any) -> None:
    """Keep the results of a job that has ended without an error.

    If there was no Monitor in this process, the verdict is that on a log in the job's folder.

    Args:
        job: The job.
        value: What it returned.
    """
    reason = ""
    try:
        if job.leave_results is not None:
            job.leave_results()
        if not (job.folder / VERDICT).exists():  # a Monitor in another process may have left it
            recording = read_log(job.folder)
            write_results(job.folder, recording, judge_recording(recording))
    except StabilityError:
        reason = _NO_MONITOR
    except OSError as error:
        reason = f"its folder cannot be written ({error.strerror or error})"
    record = {"returned": plain(_as_json(value)), "no verdict": reason}
    write_atomically(job.folder / RETURNED, json.dumps(record).encode())


def read_returned(folder: Path) -> Returned | None:
    """Read what a job returned; None if it is not finished."""
    if (folder / ERROR).exists():
        return None
    try:
        record = load_json((folder / RETURNED).read_bytes())
        return Returned(_numbers(record["returned"]), str(record["no verdict"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _as_json(value: Any) -> Any:
    """The value in the kinds that JSON has. Tensors and NumPy's numbers with one element are numbers."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(name): _as_json(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(own) for own in value]
    try:
        return float(value) if isinstance(value, Real) or getattr(value, "ndim", None) == 0 else None
    except (TypeError, ValueError):
        return None


def _numbers(value: Any) -> Any:
    """The value, with numbers in place of the texts that `plain` makes of those that are not finite."""
    if isinstance(value, list):
        return [_numbers(own) for own in value]
    if isinstance(value, dict):
        return {name: _numbers(own) for name, own in value.items()}
    return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}.get(value, value) if isinstance(value, str) else value

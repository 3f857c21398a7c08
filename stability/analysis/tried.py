"""How the trials of an experiment ended that chooses its next trials by the outcomes so far."""

import math
from pathlib import Path
from typing import NamedTuple

from stability.analysis.trial import read_record
from stability.analysis.trials import NoTrial, read_trial
from stability.core.errors import StabilityError
from stability.core.files import ERROR, short_path


class Tried(NamedTuple):
    """How a trial ended.

    Attributes:
        outcome: The outcome of its verdict; `crashed` if it has none.
        cause: The cause of its verdict, if one was found.
        failed: Whether it failed: its outcome is neither stable nor slow. None if it crashed.
        error_rate: That of its last validation; NaN if none was recorded.
        steps: The steps that it made.
        folder: The name of its folder.
    """

    outcome: str
    cause: str | None
    failed: bool | None
    error_rate: float
    steps: int
    folder: str


def read_tried(folder: Path) -> Tried | None:
    """Read the trial in a folder; None if it has not ended, or crashed."""
    if (folder / ERROR).exists():
        return None
    try:
        trial = read_trial(folder)
    except NoTrial:
        return None
    steps = read_record(trial).signals.steps
    made = int(steps[-1]) + 1 if len(steps) else 0
    return Tried(trial.outcome, trial.cause, not trial.healthy, trial.per, made, folder.name)


def read_launched(folder: Path) -> Tried:
    """Read the trial in a folder after it was launched.

    Raises:
        StabilityError: It has no verdict, and has not crashed.
    """
    if tried := read_tried(folder):
        return tried
    if (folder / ERROR).exists():
        return Tried("crashed", None, None, math.nan, 0, folder.name)
    raise StabilityError(
        f"The trial in {short_path(folder)} has no verdict: another process is training it, or its process was killed. "
        "Run the same command again: it goes on from there."
    )

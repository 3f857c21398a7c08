"""Counts the steps that a sweep's trials write into their folders: how fast it is, and how long the rest takes.

Trials share stacks, start at different times and may be resumed. So neither the trials that have ended nor the time
that one of them took says how long the rest takes: steps do.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stability.core.files import SIGNALS_FILE

_TAIL = 8192  # bytes at the end of a table of signals that certainly hold its last row


@dataclass
class Made:
    """The steps of one trial.

    Attributes:
        steps: How many it has made, those of earlier runs included.
        loss: The loss of the last one; NaN if it is not known.
        first: When its steps were first seen to grow, and how many there were.
        last: When they were last seen to grow.
    """

    steps: int = 0
    loss: float = math.nan
    first: tuple[float, int] | None = None
    last: float = -math.inf
    written: int = 0  # when its table was written (ns)

    @property
    def pace(self) -> float:
        """Steps a second; 0 if that is not known yet."""
        return _pace(self.first, (self.last, self.steps)) if self.first else 0.0


class Pace:
    """The steps of all trials of a sweep. Times are in seconds, from any clock.

    Args:
        fresh: {folder: whether its trial is trained from the start} of all trials that are known.
    """

    def __init__(self, fresh: Mapping[Path, bool]) -> None:
        self.trials: dict[Path, Made] = {}
        for folder, anew in fresh.items():
            steps, _ = _last_row(folder)
            self.trials[folder] = Made(0 if anew else steps, written=_written(folder))
        self._first: tuple[float, int] | None = None
        self._now = (0.0, 0)

    def look(self, folders: Iterable[Path], now: float) -> None:
        """Read the steps that some trials have made since the last look."""
        made = self._now[1]
        for folder in folders:
            trial = self.trials.setdefault(folder, Made())
            if (written := _written(folder)) == trial.written:
                continue
            trial.written = written
            steps, loss = _last_row(folder)
            if steps > trial.steps:
                made += steps - trial.steps
                trial.steps, trial.loss, trial.last = steps, loss, now
                trial.first = trial.first or (now, steps)
        self._now = now, made
        # The clock starts with the first steps: what came before them, such as opening the data, does not come again.
        if made and self._first is None:
            self._first = self._now

    def steps_a_second(self) -> float:
        """Return the steps that all trials together make in a second; 0 if that is not known yet."""
        return _pace(self._first, self._now) if self._first else 0.0

    def seconds_left(self, budgets: Mapping[Path, int], others: int = 0) -> float | None:
        """Return how long the rest takes at this pace; None if that is not known yet.

        Args:
            budgets: {folder: steps in all} of the trials that have not ended.
            others: Steps of trials that have no folder yet.
        """
        pace = self.steps_a_second()
        left = sum(max(0, steps - self.trials[folder].steps) for folder, steps in budgets.items())
        return (left + others) / pace if pace else None


def _pace(first: tuple[float, int], last: tuple[float, int]) -> float:
    seconds, steps = (b - a for a, b in zip(first, last, strict=True))
    return steps / seconds if seconds > 0 else 0.0


def steps_made(folder: Path) -> int:
    """Return the number of steps in a trial's table of signals."""
    return _last_row(folder)[0]


def _written(folder: Path) -> int:
    with suppress(OSError):
        return (folder / SIGNALS_FILE).stat().st_mtime_ns
    return 0


def _last_row(folder: Path) -> tuple[int, float]:
    """Return the number of steps in a trial's table of signals, which may be half written, and the loss of the last."""
    with suppress(OSError, ValueError, IndexError), (folder / SIGNALS_FILE).open("rb") as file:
        names = file.readline().rstrip(b"\n").split(b",")
        start = file.tell()
        file.seek(max(start, file.seek(0, 2) - _TAIL))
        *_, last, _ = (b"\n" + file.read()).split(b"\n")  # what follows the last line break may be cut
        cells = last.split(b",")
        if len(cells) == len(names):
            return int(cells[0]) + 1, float(dict(zip(names, cells, strict=True)).get(b"loss") or "nan")
    return 0, math.nan

"""The runs in a log: where one starts, where it resumes, and what was logged twice."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stability.core.text import counted
from stability.diagnosis.history import History
from stability.diagnosis.readers.names import TRAINING, VALIDATION, choose_names, find_name
from stability.diagnosis.table import Table

_BLOCK = 1024  # rows that are converted at once
_MANY = 1000  # so many steps back, so often, are no resumes: the rows are in no order
_KEPT = 200  # of more runs in one log, the last ones are kept
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Run:
    """One of the runs in a log.

    Attributes:
        table: Its rows, sorted, one per step.
        notes: Sentences about what was left out or mended.
        titles: What the log calls each signal of the table.
    """

    table: Table
    notes: tuple[str, ...]
    titles: dict[str, str]


@dataclass(frozen=True)
class _Ended:
    """A run that ended because another one began."""

    table: Table
    kept: int
    thinned: bool
    resumes: int
    resumed: str


class Runs:
    """Collects rows in the order of the log, and divides them into runs.

    A step back to the first step starts a new run. A smaller step back is a resume: what follows replaces what it
    repeats. But if many rows step back and no step is repeated, the rows belong to one run and are in no order.

    Args:
        unit: What a step counts, for the notes.
    """

    def __init__(self, unit: str = "step") -> None:
        self._unit = unit
        self._block: list[tuple[int, dict[str, float]]] = []
        self._all = History()
        self._last: History | None = History()
        self._ended: deque[_Ended] = deque(maxlen=_KEPT - 1)
        self._followed: tuple[str, ...] = VALIDATION  # the signals of training as soon as there is one
        self._first = -1  # step of a row with such a signal
        self._previous: dict[str, int] = {}  # the last step at which each of them was measured
        self._rows = self._back = 0  # rows with such a signal, and how many of them step back
        self._resumes, self._resumed = 0, ""
        self._repeated = 0

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add a row. Several rows in succession for one step are merged."""
        if self._block and self._block[-1][0] == step:
            row = self._block[-1][1]
            self._repeated += len(row.keys() & values.keys())
            row.update(values)
            return
        if len(self._block) == _BLOCK:
            self._flush()
        self._block.append((step, values))

    def runs(self) -> list[Run]:
        """Return the runs in the order of the log."""
        self._flush()
        table = self._all.table()
        if not len(table.steps):
            return []
        followed = table.steps[_has_any(table, self._followed)]
        again = len(followed) - len(np.unique(followed))
        if self._last is None or (4 * self._back > self._rows and again < self._back):
            notes = [f"The {self._unit}s are in no order: the rows were sorted by {self._unit}."]
            return [self._run(_Ended(table, len(self._all), self._all.thinned, 0, ""), notes, self._repeated)]
        self._end()
        runs = [ended for ended in self._ended if len(ended.table.steps)]
        return [self._run(ended, [], self._repeated if len(runs) == 1 else 0) for ended in runs]

    def _end(self) -> None:
        """Put the last run among those that have ended."""
        assert self._last is not None
        last = self._last
        self._ended.append(_Ended(last.table(), len(last), last.thinned, self._resumes, self._resumed))

    def _run(self, ended: _Ended, notes: list[str], repeated: int) -> Run:
        if ended.resumes:
            times = "" if ended.resumes == 1 else f" {ended.resumes:,} times, the last time"
            notes.append(f"The run resumed{times} {ended.resumed}: later rows replace earlier ones.")
        counts = ended.table.measured.sum(axis=0).tolist()
        titles = choose_names({title: n for title, n in zip(ended.table.names, counts, strict=True) if n})
        places = [ended.table.names.index(title) for title in titles.values()]
        chosen = Table((*titles,), ended.table.steps, ended.table.values[:, places], ended.table.measured[:, places])
        table, merged = _merge_steps(chosen.take(_has_any(chosen, (*titles,))))
        if repeated + merged:
            notes.append(
                f"Left out {counted(repeated + merged, 'value')}: the log has later ones for the same {self._unit}s."
            )
        if ended.thinned:
            notes.append(
                f"The log is long: the verdict uses {ended.kept:,} rows, the newest and a sample of all others."
            )
        return Run(table, (*notes,), titles)

    def _flush(self) -> None:
        if not self._block:
            return
        names = tuple(dict.fromkeys(name for _, row in self._block for name in row))
        steps = np.array([step for step, _ in self._block], np.int64)
        values = np.array([[row.get(name, np.nan) for name in names] for _, row in self._block])
        measured = np.array([[name in row for name in names] for _, row in self._block])
        self._block.clear()
        # A finite number stays finite as a float32.
        np.clip(values, -_LARGEST, _LARGEST, out=values, where=np.isfinite(values))
        rows = Table(names, steps, values.astype(np.float32), measured)
        self._all.append(rows)
        self._follow(rows)

    def _follow(self, rows: Table) -> None:
        """Append rows to the last run. Start it again, or cut it back, where a signal that is followed steps back."""
        if self._followed != TRAINING and _is_any(rows, TRAINING).any():
            self._followed, self._first = TRAINING, -1
            self._previous.clear()
        followed = rows.steps[_has_any(rows, self._followed)]
        if len(followed) and self._first < 0:
            self._first = int(followed[0])
        self._rows += len(followed)
        begin = 0
        while self._last is not None:
            end = self._next_back(rows, begin)
            self._last.append(rows.take(slice(begin, end)))
            for column, name in enumerate(rows.names):
                if _signal(name) in self._followed and (there := rows.measured[begin:end, column]).any():
                    self._previous[name] = int(rows.steps[begin:end][there][-1])
            if end == len(rows.steps):
                return
            self._step_back(int(rows.steps[end]))
            begin = end

    def _next_back(self, rows: Table, begin: int) -> int:
        """The first row, from `begin` on, in which a signal steps back; the number of rows if none does."""
        found = len(rows.steps)
        for column, name in enumerate(rows.names):
            if _signal(name) in self._followed:
                places = begin + np.flatnonzero(rows.measured[begin:, column])
                back = np.diff(rows.steps[places], prepend=self._previous.get(name, -1)) < 0
                found = min([found, *places[back][:1].tolist()])
        return found

    def _step_back(self, step: int) -> None:
        assert self._last is not None
        self._back += 1
        latest = max(self._previous.values())
        self._previous = {name: min(last, step) for name, last in self._previous.items()}
        if self._back > _MANY and 4 * self._back > self._rows:
            self._last = None
        elif step <= self._first:
            self._end()
            self._last, self._resumes, self._resumed = History(), 0, ""
        else:
            self._last.truncate(step)
            self._resumes, self._resumed = self._resumes + 1, f"from {self._unit} {step} after {self._unit} {latest}"


def is_validation(titles: Iterable[str]) -> bool:
    """Return whether all these names are of what is measured in a validation."""
    return all(_signal(title) in VALIDATION for title in titles)


def training_part(table: Table) -> Table:
    """Return the rows and columns that were measured in training."""
    return _part(table, TRAINING)


def validation_part(table: Table) -> Table:
    """Return the rows and columns that were measured in validation. The validation loss is called `loss` again."""
    part = _part(table, VALIDATION)
    return replace(part, names=tuple("loss" if name == "val_loss" else name for name in part.names))


def _part(table: Table, names: tuple[str, ...]) -> Table:
    columns, rows = _is_any(table, names), _has_any(table, names)
    kept = tuple(name for name in table.names if name in names)
    return Table(kept, table.steps[rows], table.values[rows][:, columns], table.measured[rows][:, columns])


def _has_any(table: Table, names: tuple[str, ...]) -> NDArray[np.bool_]:
    """The rows that measured any of these signals."""
    return np.asarray(table.measured[:, _is_any(table, names)].any(axis=1))


def _is_any(table: Table, signals: tuple[str, ...]) -> NDArray[np.bool_]:
    """The columns that hold any of these signals, under whatever name."""
    return np.array([name in signals or _signal(name) in signals for name in table.names], bool)


def _signal(title: str) -> str:
    name = find_name(title)
    return name.signal if name else ""


def _merge_steps(table: Table) -> tuple[Table, int]:
    """Return one row per step, sorted, with each signal's last value there; and how many values were left out."""
    order = np.argsort(table.steps, kind="stable")
    steps, begins = np.unique(table.steps[order], return_index=True)
    measured = table.measured[order]
    latest = np.maximum.reduceat(np.where(measured, np.arange(len(order))[:, None], -1), begins)
    values = np.take_along_axis(table.values[order], np.maximum(latest, 0), axis=0)
    merged = Table(table.names, steps, np.where(latest >= 0, values, np.float32(np.nan)), latest >= 0)
    return merged, int(measured.sum() - merged.measured.sum())

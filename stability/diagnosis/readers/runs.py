"""The runs in a log: where one starts, where it resumes, and what was logged twice."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stability.core.text import counted
from stability.diagnosis.history import History
from stability.diagnosis.readers.columns import TRAINING, VALIDATION
from stability.diagnosis.table import Table

_BLOCK = 1024  # rows that are converted at once
_MANY = 1000  # more steps back than these, in over a quarter of the rows, are no resumes: the rows are in no order
_LARGEST = float(np.finfo(np.float32).max)


class LastRun:
    """Collects rows in the order of the log, and keeps the last run among them.

    A step back to the first step starts a new run. A smaller step back is a resume: what follows replaces what it
    repeats. But if many rows step back and no step is repeated, the rows belong to one run and are in no order.
    """

    def __init__(self) -> None:
        self._block: list[tuple[int, dict[str, float]]] = []
        self._all = History()
        self._last: History | None = History()
        self._first = -1  # step of a training row
        self._previous = dict.fromkeys(TRAINING, -1)  # the last step at which each signal was measured
        self._rows = self._back = 0  # training rows, and how many of them step back
        self._starts, self._resumes, self._resumed = 1, 0, ""
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

    def table(self, notes: list[str]) -> Table | None:
        """Return the last run, sorted, one row per step; None if there are no rows. Add what was mended to `notes`."""
        self._flush()
        table = self._all.table()
        if not len(table.steps):
            return None
        training = table.steps[_has_any(table, TRAINING)]
        again = len(training) - len(np.unique(training))
        history = self._last
        if history is None or (4 * self._back > self._rows and again < self._back):
            history = self._all
            notes.append("The steps are in no order: the rows were sorted by step.")
        else:
            table = history.table()
            if self._starts > 1:
                notes.append(f"The log holds {self._starts} runs. The verdict is on the last one.")
            if self._resumes:
                times = "" if self._resumes == 1 else f" {self._resumes:,} times, the last time"
                notes.append(f"The run resumed{times} {self._resumed}: later rows replace earlier ones.")
        table, repeated = _merge_steps(table)
        if self._repeated + repeated:
            left_out = counted(self._repeated + repeated, "value")
            notes.append(f"Left out {left_out}: the log has later ones for the same steps.")
        if history.thinned:
            notes.append(
                f"The log is long: the verdict uses {len(history):,} rows, the newest and a sample of all others."
            )
        return table

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
        """Append rows to the last run. Start it again, or cut it back, where a training signal steps back."""
        training = rows.steps[_has_any(rows, TRAINING)]
        if len(training) and self._first < 0:
            self._first = int(training[0])
        self._rows += len(training)
        begin = 0
        while self._last is not None:
            end = self._next_back(rows, begin)
            self._last.append(rows.take(slice(begin, end)))
            for column, name in enumerate(rows.names):
                if name in TRAINING and (there := rows.measured[begin:end, column]).any():
                    self._previous[name] = int(rows.steps[begin:end][there][-1])
            if end == len(rows.steps):
                return
            self._step_back(int(rows.steps[end]))
            begin = end

    def _next_back(self, rows: Table, begin: int) -> int:
        """The first row, from `begin` on, in which a training signal steps back; the number of rows if none does."""
        found = len(rows.steps)
        for column, name in enumerate(rows.names):
            if name in TRAINING:
                places = begin + np.flatnonzero(rows.measured[begin:, column])
                back = np.diff(rows.steps[places], prepend=self._previous[name]) < 0
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
            self._last, self._starts, self._resumes = History(), self._starts + 1, 0
        else:
            self._last.truncate(step)
            self._resumes, self._resumed = self._resumes + 1, f"from step {step} after step {latest}"


def training_part(table: Table) -> Table:
    """Return the rows and columns that were measured in training."""
    return _part(table, TRAINING)


def validation_part(table: Table) -> Table:
    """Return the rows and columns that were measured in validation. The validation loss is called `loss` again."""
    part = _part(table, VALIDATION)
    return replace(part, names=tuple("loss" if name == "val_loss" else name for name in part.names))


def _part(table: Table, names: tuple[str, ...]) -> Table:
    columns, rows = np.isin(table.names, names), _has_any(table, names)
    kept = tuple(name for name in table.names if name in names)
    return Table(kept, table.steps[rows], table.values[rows][:, columns], table.measured[rows][:, columns])


def _has_any(table: Table, names: tuple[str, ...]) -> NDArray[np.bool_]:
    """The rows that measured any of these signals."""
    return np.asarray(table.measured[:, np.isin(table.names, names)].any(axis=1))


def _merge_steps(table: Table) -> tuple[Table, int]:
    """Return one row per step, sorted, with each signal's last value there; and how many values were left out."""
    order = np.argsort(table.steps, kind="stable")
    steps, begins = np.unique(table.steps[order], return_index=True)
    measured = table.measured[order]
    latest = np.maximum.reduceat(np.where(measured, np.arange(len(order))[:, None], -1), begins)
    values = np.take_along_axis(table.values[order], np.maximum(latest, 0), axis=0)
    merged = Table(table.names, steps, np.where(latest >= 0, values, np.float32(np.nan)), latest >= 0)
    return merged, int(measured.sum() - merged.measured.sum())

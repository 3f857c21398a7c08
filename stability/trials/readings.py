"""A trial's signals and validations: appended to its files as they come, and kept in memory for the detectors."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from stability.core.files import SIGNALS_FILE, VALIDATION_FILE
from stability.diagnosis.detectors import findings
from stability.diagnosis.finding import Finding
from stability.diagnosis.history import History
from stability.diagnosis.table import Table, append_table, read_table
from stability.diagnosis.verdict import Verdict, judge, stopped
from stability.trials.requests import Validation

VALIDATED = ("per", "loss")  # the columns of validation.csv


class Readings:
    """What a trial has measured so far. A resumed trial reads its files once, here.

    Args:
        folder: The trial's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = folder / SIGNALS_FILE, folder / VALIDATION_FILE
        self._signals, self._validations = History(), History()
        for history, path in zip((self._signals, self._validations), self._paths, strict=True):
            history.append(read_table(path))
        self._looked: tuple[Table, Table, list[Finding]] | None = None  # of the present rows

    def add_signals(self, rows: Table) -> None:
        """Append the signals of some steps."""
        append_table(self._paths[0], rows)
        self._signals.append(rows)
        self._looked = None

    def add_validation(self, step: int, validation: Validation) -> None:
        """Append a validation that was made after `step`."""
        values = np.array([validation], np.float32)
        row = Table(VALIDATED, np.array([step]), values, np.ones_like(values, bool))
        append_table(self._paths[1], row)
        self._validations.append(row)
        self._looked = None

    def fault(self, kinds: Collection[str]) -> Verdict | None:
        """The verdict by the first finding of these kinds; None without one."""
        signals, validations, found = self._look()
        return stopped(signals, validations, kinds, found)

    def judge(self) -> Verdict:
        """The verdict on a trial whose budget is spent."""
        if self._signals.thinned or self._validations.thinned:  # files hold all rows, memory a sample of older ones
            signals, validations = map(read_table, self._paths)
            return judge(signals, validations)
        return judge(*self._look())

    def _look(self) -> tuple[Table, Table, list[Finding]]:
        """Both tables and what the detectors find in them; made once for the same rows."""
        if self._looked is None:
            signals, validations = self._signals.table(), self._validations.table()
            self._looked = signals, validations, findings(signals, validations)
        return self._looked

"""A trial's signals and validations, in its files and in memory.

New rows are appended to both. The detectors read them from memory.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from stability.core.files import SIGNALS_FILE, VALIDATION_FILE
from stability.diagnosis.detectors import findings
from stability.diagnosis.finding import Finding
from stability.diagnosis.history import History
from stability.diagnosis.judge import judge, stopping_verdict
from stability.diagnosis.table import Table, append_table, read_table, sync
from stability.diagnosis.verdict import Verdict
from stability.trials.requests import Validation

VALIDATED = ("per", "loss")  # the columns of validation.csv


class Readings:
    """The signals and validations that a trial has so far. Those of a resumed trial are read from its files once, here.

    Args:
        folder: The trial's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = folder / SIGNALS_FILE, folder / VALIDATION_FILE
        self._signals, self._validations = History(), History()
        for history, path in zip((self._signals, self._validations), self._paths, strict=True):
            history.append(read_table(path))
        self._diagnosis: tuple[Table, Table, list[Finding]] | None = None  # None: rows have been added since

    def add_signals(self, rows: Table) -> None:
        """Append the signals of some steps."""
        append_table(self._paths[0], rows)
        self._signals.append(rows)
        self._diagnosis = None

    def add_validation(self, step: int, validation: Validation) -> None:
        """Append a validation that was made after `step`."""
        values = np.array([validation], np.float32)
        row = Table(VALIDATED, np.array([step]), values, np.ones_like(values, bool))
        append_table(self._paths[1], row)
        self._validations.append(row)
        self._diagnosis = None

    def sync(self) -> None:
        """Wait until both files are on the disk. Then a checkpoint that is written later cannot be ahead of them."""
        for path in self._paths:
            sync(path)

    def fault(self, kinds: Collection[str]) -> Verdict | None:
        """Return the verdict on the first finding of these kinds; None if there is none."""
        signals, validations, found = self._diagnose()
        return stopping_verdict(signals, validations, kinds, found)

    def judge(self) -> Verdict:
        """Return the verdict on a trial that has trained all its steps."""
        if self._signals.thinned or self._validations.thinned:  # then only the files have all rows
            signals, validations = map(read_table, self._paths)
            return judge(signals, validations)
        return judge(*self._diagnose())

    def _diagnose(self) -> tuple[Table, Table, list[Finding]]:
        """Return both tables and the findings in them. The detectors run only if rows have been added."""
        if self._diagnosis is None:
            signals, validations = self._signals.table(), self._validations.table()
            self._diagnosis = signals, validations, findings(signals, validations)
        return self._diagnosis

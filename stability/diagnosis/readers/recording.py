"""The recording of one training, and how it is made from the rows of a log."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stability.core.errors import StabilityError
from stability.core.text import counted
from stability.diagnosis.readers.columns import Row
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.runs import LastRun, training_part, validation_part
from stability.diagnosis.table import Table


@dataclass(frozen=True)
class Recording:
    """One training, as a log describes it. A signal that the log does not have is not in the tables.

    Attributes:
        name: The name of the file, the folder or the run.
        signals: A row per training step.
        validation: A row per validation.
        notes: Sentences about what was left out of the log or mended in it.
        official: Whether the official trainer wrote the log. Then it can be compared with healthy official runs.
    """

    name: str
    signals: Table
    validation: Table
    notes: tuple[str, ...] = ()
    official: bool = False


def record_lines(log: Log, read_line: Callable[[str], Row], *, official: bool = False) -> Recording:
    """Make a recording of a log that has at most one row per line.

    Args:
        log: The log.
        read_line: Reads the row of a line. It returns a row without numbers if the line has no row, and raises
            ValueError if it cannot read the line.
        official: Whether the official trainer wrote the log.

    Raises:
        StabilityError: A line cannot be read, or the log contains no training.
    """
    rows, notes = RowCollector(), list[str]()
    for line in log:
        try:
            step, values = read_line(line)
        except ValueError as error:
            if not log.cut:
                raise StabilityError(f"{log.path}, line {log.number}: {error}.") from None
            notes.append("The last line is cut off and was left out.")
        else:
            rows.add(step, values)
    unknown = (
        f"{log.path} contains no training that can be read: expected lines such as 'Train batch 200: loss: 94.31 "
        "grad norm: 48.85', or CSV or JSONL with a step and a loss or gradient norm."
    )
    return rows.recording(log.path.name, unknown, notes, official=official)


class RowCollector:
    """Collects the rows of a log and makes a recording of them. Rows without a step are numbered if none has one."""

    def __init__(self) -> None:
        self._with_step, self._numbered = LastRun(), LastRun()
        self._without_step = self._negative = 0

    def add(self, step: int | None, values: dict[str, float]) -> None:
        """Add a row. Rows without numbers are ignored."""
        if not values:
            return
        if step is None:
            self._numbered.add(self._without_step, values)
            self._without_step += 1
        elif step < 0:
            self._negative += 1
        else:
            self._with_step.add(step, values)

    def recording(self, name: str, unknown: str, notes: Sequence[str] = (), *, official: bool = False) -> Recording:
        """Return the last run among the rows. Raise StabilityError with the message `unknown` if there is none."""
        notes = [*notes]
        table = self._with_step.table(notes)
        if table is None:
            table = self._numbered.table(notes)
            notes.append("The log has no steps: its rows are numbered 0, 1, 2, …")
        elif self._without_step:
            notes.append(f"Left out {counted(self._without_step, 'row')} without a step.")
        if self._negative:
            notes.append(f"Left out {counted(self._negative, 'row')} with a negative step.")
        if table is None or not {"loss", "grad_norm"}.intersection(table.names):
            raise StabilityError(unknown)
        return Recording(
            name=name,
            signals=training_part(table),
            validation=validation_part(table),
            notes=tuple(notes),
            official=official,
        )

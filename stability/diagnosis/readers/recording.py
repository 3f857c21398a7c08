"""The recording of one training, and how it is made from the rows of a log."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from stability.core.text import counted
from stability.diagnosis.metric import is_in_percent, metric_name, says_percent
from stability.diagnosis.readers.columns import Row
from stability.diagnosis.readers.log import DamagedLogError, Log
from stability.diagnosis.readers.names import find_name
from stability.diagnosis.readers.runs import Run, Runs, is_validation, training_part, validation_part
from stability.diagnosis.readers.steps import Steps
from stability.diagnosis.table import Table

Unit = Literal["step", "epoch", "row"]
T = TypeVar("T")

_READABLE = frozenset({"loss", "grad_norm", "val_loss"})  # a log without any of these contains no training
_MOST_RUNS = 200  # that stand next to each other
_FEW = 3  # rows of a run
_NO_ACCURACY = 1.5  # no fraction of what is right gets here
MOST_EPOCHS = 1e9  # what is beyond, or NaN, is no epoch
NO_TRAINING_LOSS = "The log has measurements of held-out data, and no loss of training data."
_NO_STEPS = {
    "epoch": "The log has no steps: its rows are ordered by epoch.",
    "row": "The log has no steps: its rows are numbered 0, 1, 2, …",
}


@dataclass(frozen=True)
class Recording:
    """One training, as a log describes it. A signal that the log does not have is not in the tables.

    Attributes:
        name: The name of the file, the folder or the run.
        signals: A row per training step.
        validation: A row per validation.
        notes: Sentences about what was left out of the log or mended in it.
        official: Whether the official trainer wrote the log. Then it can be compared with healthy official runs.
        metric: The error rate's own name: PER, WER, CER; `1 - val_acc` if an accuracy takes its place.
        unit: What the steps of the tables count: steps, or epochs or rows of the log if it has no steps.
        epochs: If they are rows, the epoch of each row that has one.
    """

    name: str
    signals: Table
    validation: Table
    notes: tuple[str, ...] = ()
    official: bool = False
    metric: str = "PER"
    unit: Unit = "step"
    epochs: Table | None = None


def last_of(runs: Sequence[Recording]) -> Recording:
    """Return the last of the recordings, with a note if there are several."""
    if len(runs) == 1:
        return runs[0]
    note = f"The log holds {len(runs)} runs. The verdict is on the last one."
    return replace(runs[-1], notes=(note, *runs[-1].notes))


def record_lines(
    log: Log, read_line: Callable[[str], Row | None], *, official: bool = False, notes: Sequence[str] = ()
) -> list[Recording]:
    """Make the recordings of a log that has at most one row per line: one for each run in it.

    Args:
        log: The log.
        read_line: Reads the row of a line. It returns a row without numbers if the line has no row, and None if rows
            without steps may begin again after the line. It raises ValueError if it cannot read the line.
        official: Whether the official trainer wrote the log.
        notes: Notes that each recording gets.

    Returns:
        The recordings. There is none if the log contains no training.

    Raises:
        StabilityError: A line cannot be read.
    """
    rows = RowCollector()
    notes = [*notes, *read_lines(log, lambda line: rows.add_row(read_line(line)))]
    return rows.recordings(log.path.name, notes, official=official)


def read_lines(log: Log, read: Callable[[str], None]) -> list[str]:
    """Read each line of a log. Return what was left out.

    Raises:
        StabilityError: `read` raised ValueError on a line that is not cut off. The message names the line.
    """
    notes = list[str]()
    for _ in parse_lines(log, read, notes):
        pass
    return notes


def parse_lines(log: Log, parse: Callable[[str], T], notes: list[str]) -> Iterator[T]:
    """Yield what `parse` makes of each line of a log. What was left out is added to the notes.

    Raises:
        StabilityError: `parse` raised ValueError on a line that is not cut off. The message names the line.
    """
    for line in log:
        try:
            parsed = parse(line)
        except ValueError as error:
            if not log.cut:
                raise DamagedLogError(f"{log.path}, line {log.number}: {error}.") from None
            notes.append("The last line is cut off and was left out.")
            return
        yield parsed


class RowCollector:
    """Collects the rows of a log and makes recordings of them.

    Rows are ordered by step. If the log has no steps, the epoch takes their place, or the number of the row if several
    rows belong to one epoch.
    """

    def __init__(self) -> None:
        self._runs: dict[Unit, Runs] = {"step": Runs(), "epoch": Runs("epoch"), "row": Runs("row")}
        self._without_step = self._negative = 0
        self._number = 0  # of the next row without a step
        self._steps = Steps()
        self._epochs: tuple[float, float] | None = None  # the first and the last one of the run
        self._titles = set[str]()  # what was measured in the last epoch
        self._repeated = 0  # rows that repeat a title of their epoch, or have no whole epoch

    def add_row(self, row: Row | None) -> None:
        """Add a row as `record_lines` takes it."""
        if row is not None:
            self.add(*row)
        elif self._epochs is None:
            self._number = 0

    def add(self, step: int | None, values: dict[str, float]) -> None:
        """Add a row. Rows without numbers are ignored, and a validation without a step belongs to the last one."""
        epoch = values.pop("epoch", None)
        if not values:
            return
        if epoch is not None and not abs(epoch) < MOST_EPOCHS:
            epoch = None
        if step is None:
            self._add_without_step(epoch, values)
            if self._steps.last is None or not is_validation(values):
                self._without_step += 1
            else:
                self._runs["step"].add(self._steps.last, values)
        elif step < 0:
            self._negative += 1
        else:
            if epoch is not None:
                self._steps.see_epoch(epoch)
            self._runs["step"].add(self._steps.whole(step, values), values)

    def recordings(self, name: str, notes: Sequence[str] = (), *, official: bool = False) -> list[Recording]:
        """Return a recording of each run among the rows. It is empty if there is no training in them."""
        own = [*notes]
        units: list[Unit] = ["step", "row"] if 10 * self._repeated > self._without_step else ["step", "epoch", "row"]
        found = ((unit, [run for run in self._runs[unit].runs() if _is_readable(run)]) for unit in units)
        unit, runs = next(((unit, runs) for unit, runs in found if runs), ("step", []))
        if unit != "step":
            own.append(_NO_STEPS[unit])
        elif self._without_step:
            own.append(f"Left out {counted(self._without_step, 'row')} without a step.")
        if self._negative:
            own.append(f"Left out {counted(self._negative, 'row')} with a negative step.")
        percent = _titles_in_percent(runs)
        recordings = [_recording(name, run, own, percent, official=official, unit=unit) for run in runs]
        if len(recordings) == 1:
            return recordings
        return [replace(r, name=f"{name}, run {number}") for number, r in enumerate(recordings, 1)]

    def _add_without_step(self, epoch: float | None, values: dict[str, float]) -> None:
        again = self._begins_again(epoch)
        titles = {title for title in values if (name := find_name(title)) and name.signal != "lr"}
        self._number = 0 if again else self._number
        self._runs["row"].add(self._number, values | ({} if epoch is None else {"epoch": epoch}))
        self._number += 1
        if epoch is None or (self._epochs is not None and epoch == self._epochs[1]):
            self._repeated += self._epochs is None or not self._titles.isdisjoint(titles)
        else:
            self._repeated += not epoch.is_integer() or epoch < 0
            self._epochs = (epoch, epoch) if self._epochs is None or again else (self._epochs[0], epoch)
            self._titles.clear()
        self._titles.update(titles)
        if self._epochs is not None and self._epochs[1] >= 0:
            self._runs["epoch"].add(int(self._epochs[1]), values)

    def _begins_again(self, epoch: float | None) -> bool:
        """Whether an epoch steps back to the first one of the run."""
        return epoch is not None and self._epochs is not None and epoch < self._epochs[1] and epoch <= self._epochs[0]


class RunCollector:
    """Collects rows that say which run they belong to. If nearly each row has a run of its own, all are one run."""

    def __init__(self) -> None:
        self._all, self._by_run = RowCollector(), dict[str, RowCollector]()
        self._rows = 0

    def add_row(self, row: Row | None, run: str = "") -> None:
        """Add a row as `record_lines` takes it. None is for all runs."""
        if row is None:
            for rows in self._by_run.values():
                rows.add_row(None)
        elif run and (run in self._by_run or len(self._by_run) < _MOST_RUNS):
            self._rows += 1
            self._by_run.setdefault(run, RowCollector()).add(row[0], dict(row[1]))
        self._all.add_row(row)

    def recordings(self, name: str, notes: Sequence[str] = ()) -> list[Recording]:
        """Return a recording of each run."""
        if len(self._by_run) < 2 or self._rows < _FEW * len(self._by_run):
            return self._all.recordings(name, notes)
        return merge_collectors(name, self._by_run, notes)


def merge_collectors(name: str, collectors: Mapping[str, RowCollector], notes: Sequence[str] = ()) -> list[Recording]:
    """Return the recordings of several runs that stand next to each other in one log."""
    found = [(run, recording) for run, rows in collectors.items() for recording in rows.recordings(name, notes)]
    if len(found) == 1:
        return [found[0][1]]
    return [replace(r, name=f"{name}, run {number} ({run})") for number, (run, r) in enumerate(found, 1)]


def _is_readable(run: Run) -> bool:
    """Whether a run has a loss or a gradient norm, or at least several error rates, or accuracies on held-out data."""
    accuracy = find_name(run.titles.get("accuracy", ""))
    rated = "per" in run.titles or (accuracy is not None and accuracy.part == "val")
    return bool(_READABLE.intersection(run.titles)) or (rated and len(run.table.steps) > 1)


def _titles_in_percent(runs: Sequence[Run]) -> set[str]:
    """The error rates and accuracies that are percentages: by their names, or by all their values in all runs."""
    rates: dict[str, list[np.ndarray[tuple[int], np.dtype[np.float32]]]] = {}
    losses: dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]] = {}
    for run in runs:
        if "per" in run.titles:
            rates.setdefault(run.titles["per"], []).append(run.table["per"])
            if "loss" in run.titles:
                losses.setdefault(run.titles["per"], run.table["loss"])
    accuracies = {
        title
        for run in runs
        if (title := run.titles.get("accuracy", ""))
        and (title.endswith("%") or (run.table["accuracy"] > _NO_ACCURACY).any())
    }
    return accuracies | {
        title
        for title, values in rates.items()
        if title.endswith("%")
        or is_in_percent(every := np.concatenate(values), losses.get(title, ()))
        or (says_percent(title) and (every > 1).any())
    }


def _recording(
    name: str, run: Run, notes: Sequence[str], percent: set[str], *, official: bool, unit: Unit
) -> Recording:
    table, notes = run.table, [*run.notes, *notes]
    signal = "accuracy" if "accuracy" in run.titles else "per"
    title = run.titles.get(signal, "")
    metric = metric_name(title) if title else "PER"
    if title and title in percent:
        values = table.values.copy()
        values[:, table.names.index(signal)] /= 100
        table = replace(table, values=values)
        notes.append(f"{title.removesuffix(' %')} is in percent: its values were divided by 100.")
    if signal == "accuracy":
        metric = f"1 - {title.removesuffix(' %')}"
        table = _with_errors(table)
        notes.append(f"The log has no error rate: {metric} takes its place.")
    if not {"loss", "grad_norm"}.intersection(table.names):
        notes.append(NO_TRAINING_LOSS)
    return Recording(
        name=name,
        signals=training_part(table),
        validation=validation_part(table),
        notes=tuple(notes),
        official=official,
        metric=metric,
        unit=unit,
        epochs=table if "epoch" in table.names else None,
    )


def _with_errors(table: Table) -> Table:
    """The table with 1 - accuracy as the error rate."""
    values = table.values.copy()
    place = table.names.index("accuracy")
    values[:, place] = 1 - values[:, place]
    return replace(table, names=tuple("per" if name == "accuracy" else name for name in table.names), values=values)

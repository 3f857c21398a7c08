"""Read other people's logs: the official trainer's `training_log`, or step and metrics as CSV or JSONL.

A recording holds what the log says of one training: signals by step, validations by step. What a log does not
have is not made up: its signals are simply not there. A log is read as a stream, and of a long one a sample is held.
"""

import codecs
import csv
import io
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stability.core.errors import StabilityError
from stability.core.text import counted
from stability.diagnosis.history import History
from stability.diagnosis.table import SIGNALS_FILE, VALIDATION_FILE, Table, read_table

# What other projects call our signals; names are compared in lower case, without what stands before a slash.
# Of several names for one signal in the same log, the one that stands first here counts.
_ALIASES = {
    "step": ("global_step", "step", "_step", "train_step", "iteration", "iter", "batch"),
    "loss": ("loss", "train_loss", "training_loss", "ctc_loss"),
    "grad_norm": ("grad_norm", "gradient_norm", "gradnorm", "grad norm", "total_norm", "grad_norm_total"),
    "lr": ("lr", "learning_rate"),
    "blank_fraction": ("blank_fraction", "blank_share", "blank_rate"),
    "per": ("per", "val_per", "eval_per", "wer", "val_wer", "cer", "val_cer"),
    "val_loss": ("val_loss", "eval_loss", "validation_loss", "valid_loss"),
}
_RANKS = {alias: (name, rank) for name, aliases in _ALIASES.items() for rank, alias in enumerate(aliases)}
_TRAINING = ("loss", "grad_norm", "lr", "blank_fraction")
_VALIDATIONS = ("per", "val_loss")

_NUMBER = r"([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf))"
_TRAINED = re.compile(rf"Train batch (\d+): loss: {_NUMBER} grad norm: {_NUMBER}\s", re.IGNORECASE)
_VALIDATED = re.compile(rf"Val batch (\d+): PER \(avg\): {_NUMBER} CTC Loss \(avg\): {_NUMBER}\s", re.IGNORECASE)
_C_NAN = re.compile(r"[-+]?nan\(\w*\)", re.IGNORECASE)
_C_CONSTANT = re.compile(r"(?<=:)\s*(-?)\+?(?:(nan)(?:\(\w*\))?|inf(?:inity)?)\s*(?=[,}])", re.IGNORECASE)
_UNMEASURED = ("", "none", "null", "na")

_LONGEST = 1 << 22  # characters of a line
_BLOCK = 1024  # rows
_MANY = 1000  # steps back: so many, so often, are no resumes
_LARGEST_STEP = 2**53  # beyond it not every whole number is a float
_LARGEST = float(np.finfo(np.float32).max)

_Row = tuple[int | None, dict[str, float]]


@dataclass(frozen=True)
class Recording:
    """What a log says of one training. `notes` tell what in the log was left out or mended, for a person."""

    name: str
    signals: Table
    validation: Table
    notes: tuple[str, ...]
    official: bool = False  # the official trainer's log, so a healthy official run is a yardstick


def read_log(path: Path, progress: Callable[[int, int], None] = lambda read, size: None) -> Recording:
    """Read a log, or a trial's folder. StabilityError says what is wrong with one that holds no training.

    `progress` is told now and then, in a long file, how many characters have been read of about how many.
    """
    try:
        if path.is_dir():
            return _read_folder(path)
        with _open(path) as file:
            return _read_lines(path, _Lines(path, file, progress))
    except OSError as error:
        raise StabilityError(f"{error.filename or path} cannot be read: {error.strerror}.") from None


def from_metrics(name: str, history: Iterable[tuple[str, int, float]]) -> Recording:
    """A recording of (metric, step, value) in the order in which they were logged, under whatever names.

    StabilityError if none is known.
    """
    rows = _Rows()
    for metric, step, value in history:
        for known in _columns((metric,)):
            if known != "step":
                rows.add(step, {known: value})
    unknown = f"{name} has no metric that is known as a training loss or gradient norm."
    return rows.recording(name, unknown, [], official=False)


def _read_folder(path: Path) -> Recording:
    signals = read_table(path / SIGNALS_FILE)
    if not len(signals.steps):
        raise StabilityError(
            f"{path} holds no {SIGNALS_FILE} with rows: it is no trial's folder, or nothing was trained."
        )
    return Recording(path.resolve().name, signals, read_table(path / VALIDATION_FILE), ())


def _open(path: Path) -> io.TextIOWrapper:
    """That file as text: UTF-8 unless it says that it is UTF-16, with any newlines, and no byte that is an error."""
    file = path.open("rb")
    wide = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return io.TextIOWrapper(file, "utf-16" if wide else "utf-8-sig", errors="replace")


class _Lines:
    """The lines of a file that are not blank, one at a time."""

    def __init__(self, path: Path, file: io.TextIOWrapper, progress: Callable[[int, int], None]) -> None:
        self._path, self._file, self._progress = path, file, progress
        self._size = os.fstat(file.fileno()).st_size
        self.number = 0  # of the last line
        self.cut = False  # whether the last line lacks its end: then it is the file's last, and may not be whole

    def __iter__(self) -> Iterator[str]:
        read = 0
        while line := self._file.readline(_LONGEST):
            self.number += 1
            self.cut = not line.endswith("\n")
            if self.cut and len(line) == _LONGEST:
                raise StabilityError(
                    f"{self._path}, line {self.number} is longer than {_LONGEST:,} characters: a log has a line a step."
                )
            read += len(line)
            if self.number % 10_000 == 0:
                self._progress(read, self._size)
            if not line.isspace():
                yield line


def _read_lines(path: Path, lines: _Lines) -> Recording:
    stream = iter(lines)
    first = next(stream, None)
    if first is None:
        raise StabilityError(f"{path} is empty.")
    rows, notes = _Rows(), list[str]()
    parse = _json_row if first.lstrip().startswith("{") else _csv_parser(first)
    if parse is None or parse is _json_row:
        parse = parse or _official_row
        stream = itertools.chain([first], stream)
    for line in stream:
        try:
            step, values = parse(line)
        except ValueError as error:
            if not lines.cut:
                raise StabilityError(f"{path}, line {lines.number}: {error}.") from None
            notes.append("The last line is cut off and was left out.")
        else:
            rows.add(step, values)
    unknown = (
        f"{path} holds no training that could be read: expected lines such as 'Train batch 200: loss: 94.31 "
        "grad norm: 48.85', or CSV or JSONL with a step and a loss or gradient norm."
    )
    return rows.recording(path.name, unknown, notes, official=parse is _official_row)


def _official_row(line: str) -> _Row:
    if match := _TRAINED.search(line):
        return _step(float(match[1])), {"loss": float(match[2]), "grad_norm": float(match[3])}
    if match := _VALIDATED.search(line):
        return _step(float(match[1])), {"per": float(match[2]), "val_loss": float(match[3])}
    return None, {}


def _json_row(line: str) -> _Row:
    expected = "expected an object with a step and its metrics"
    try:
        try:
            row = json.loads(line)
        except ValueError:  # perhaps a constant as C prints it
            row = json.loads(_C_CONSTANT.sub(lambda match: "NaN" if match[2] else match[1] + "Infinity", line))
    except (ValueError, RecursionError):
        raise ValueError(expected) from None
    if not isinstance(row, dict):
        raise ValueError(expected)
    return _row(tuple(row), tuple(row.values()))


def _csv_parser(header: str) -> Callable[[str], _Row] | None:
    """How to read a row below that header; None if it is none."""
    separator = max(",;\t", key=lambda s: len(_columns(tuple(_cells(header, s)))))
    titles = tuple(_cells(header, separator))

    def parse(line: str) -> _Row:
        cells = _cells(line, separator)
        if len(cells) != len(titles):
            raise ValueError(f"expected {len(titles)} cells, as in the header, found {len(cells)}")
        return _row(titles, cells)

    return parse if _columns(titles) else None


def _cells(line: str, separator: str) -> list[str]:
    if '"' not in line:
        return line.rstrip("\n").split(separator)
    try:
        return next(csv.reader([line], delimiter=separator))
    except csv.Error:  # a cell too long for it
        return line.split(separator)


def _row(titles: tuple[str, ...], cells: Sequence[object]) -> _Row:
    """Step and numbers of a row, under our names; what is not known (a message, a date) is passed over."""
    step, values = None, dict[str, float]()
    for name, at in _columns(titles).items():
        try:
            number = _number(cells[at])
            if name == "step":
                step = _step(number)
            elif number is not None:
                values[name] = number
        except ValueError as error:
            raise ValueError(f"column {titles[at]!r}: {error}, found {str(cells[at])[:40]!r}") from None
    return step, values


@lru_cache(maxsize=64)
def _columns(titles: tuple[str, ...]) -> dict[str, int]:
    """Where each known signal, or the step, stands."""
    found: dict[str, tuple[int, int]] = {}
    for at, title in enumerate(titles):
        *prefixes, plain = title.strip().lower().split("/")
        name, rank = _RANKS.get(plain, ("", 0))
        validating = any(prefix.startswith(("val", "eval", "test")) for prefix in prefixes)
        training = any(prefix.startswith("train") for prefix in prefixes)
        if name == "loss" and validating:
            name = "val_loss"
        known = name and not (validating and name in _TRAINING) and not (training and name in _VALIDATIONS)
        if known and (name not in found or rank < found[name][0]):
            found[name] = (rank, at)
    return {name: at for name, (_, at) in found.items()}


def _number(cell: Any) -> float | None:
    """The number in a cell; None if there is none, which is not measured. ValueError if it is something else."""
    if isinstance(cell, bool):
        return None
    try:
        return float(cell)
    except TypeError:  # an object, a list, null
        return None
    except OverflowError:  # an integer of hundreds of digits
        return math.copysign(math.inf, cell > 0 or -1)
    except ValueError:
        text = str(cell).strip()
    if text.lower() in _UNMEASURED:
        return None
    if _C_NAN.fullmatch(text):
        return math.nan
    raise ValueError("expected a number or nothing")


def _step(number: float | None) -> int | None:
    if number is None or math.isnan(number):
        return None
    if abs(number) > _LARGEST_STEP or not number.is_integer():
        raise ValueError("expected a whole number")
    return int(number)


class _Rows:
    """Takes the rows of a log, and makes a recording of them. Rows without a step are numbered, if all are."""

    def __init__(self) -> None:
        self._stepped, self._numbered = _Trainings(), _Trainings()
        self._without = self._negative = 0

    def add(self, step: int | None, values: dict[str, float]) -> None:
        if not values:
            return
        if step is None:
            self._numbered.add(self._without, values)
            self._without += 1
        elif step < 0:
            self._negative += 1
        else:
            self._stepped.add(step, values)

    def recording(self, name: str, unknown: str, notes: list[str], *, official: bool) -> Recording:
        """The last training in these rows; StabilityError with the message `unknown` if there is none."""
        table = self._stepped.last(notes)
        if table is None:
            table = self._numbered.last(notes)
            notes.append("There are no steps: the rows are taken as steps 0, 1, 2, …")
        elif self._without:
            notes.append(f"{counted(self._without, 'row')} without a step left out.")
        if self._negative:
            notes.append(f"{counted(self._negative, 'row')} with a negative step left out.")
        if table is None or not {"loss", "grad_norm"}.intersection(table.names):
            raise StabilityError(unknown)
        tables = (_part(table, validation=False), _part(table, validation=True))
        return Recording(name, *tables, tuple(notes), official)


class _Trainings:
    """Takes rows in the order in which a log has them, and holds the last training among them.

    A step back to the start begins a training, and a smaller step back is a resume, which replaces what it repeats. But
    where every few rows step back and no step comes again, the rows are of one training, in no order.
    """

    def __init__(self) -> None:
        self._block: list[tuple[int, dict[str, float]]] = []
        self._all = History()
        self._last: History | None = History()
        self._first = -1  # step of a training row
        self._previous = dict.fromkeys(_TRAINING, -1)  # the last step at which each signal was measured
        self._rows = self._back = 0  # training rows, and those of them that step back
        self._starts, self._resumes, self._resumed = 1, 0, ""
        self._repeated = 0

    def add(self, step: int, values: dict[str, float]) -> None:
        if self._block and self._block[-1][0] == step:
            row = self._block[-1][1]
            self._repeated += len(row.keys() & values.keys())
            row.update(values)
            return
        if len(self._block) == _BLOCK:
            self._flush()
        self._block.append((step, values))

    def last(self, notes: list[str]) -> Table | None:
        """A row a step, in their order, and notes on what was done for that; None if there are no rows."""
        self._flush()
        table = self._all.table()
        if not len(table.steps):
            return None
        training = table.steps[_rows_of(table, validation=False)]
        again = len(training) - len(np.unique(training))
        history = self._last
        if history is None or (4 * self._back > self._rows and again < self._back):
            history = self._all
            notes.append("The steps are in no order: the rows were sorted.")
        else:
            table = history.table()
            if self._starts > 1:
                notes.append(f"The log holds {self._starts} starts; the last is judged.")
            if self._resumes:
                times = "" if self._resumes == 1 else f" {self._resumes:,} times, at last"
                notes.append(f"Resumed{times} {self._resumed}: what came later is judged.")
        table, repeated = _merged(table)
        if self._repeated + repeated:
            notes.append(
                f"{counted(self._repeated + repeated, 'value')} logged again for the same step: later ones count."
            )
        if history.thinned:
            notes.append(
                f"The log is long: its newest rows and a sample of all others, {len(history):,} rows, are judged."
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
        # What is finite stays finite as a float32.
        np.clip(values, -_LARGEST, _LARGEST, out=values, where=np.isfinite(values))
        rows = Table(names, steps, values.astype(np.float32), measured)
        self._all.append(rows)
        self._follow(rows)

    def _follow(self, rows: Table) -> None:
        """Append rows to the last training, through all its starts and resumes."""
        training = rows.steps[_rows_of(rows, validation=False)]
        if len(training) and self._first < 0:
            self._first = int(training[0])
        self._rows += len(training)
        begin = 0
        while self._last is not None:
            end = self._next_back(rows, begin)
            self._last.append(rows.take(slice(begin, end)))
            for at, name in enumerate(rows.names):
                if name in _TRAINING and (there := rows.measured[begin:end, at]).any():
                    self._previous[name] = int(rows.steps[begin:end][there][-1])
            if end == len(rows.steps):
                return
            self._step_back(int(rows.steps[end]))
            begin = end

    def _next_back(self, rows: Table, begin: int) -> int:
        """The first row from `begin` on in which a training signal steps back; the number of rows if none does."""
        found = len(rows.steps)
        for at, name in enumerate(rows.names):
            if name in _TRAINING:
                places = begin + np.flatnonzero(rows.measured[begin:, at])
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


def _merged(table: Table) -> tuple[Table, int]:
    """One row a step, in their order, of what was said twice of a step the later; and how much was."""
    order = np.argsort(table.steps, kind="stable")
    steps, begins = np.unique(table.steps[order], return_index=True)
    measured = table.measured[order]
    latest = np.maximum.reduceat(np.where(measured, np.arange(len(order))[:, None], -1), begins)
    values = np.take_along_axis(table.values[order], np.maximum(latest, 0), axis=0)
    there = latest >= 0
    return Table(table.names, steps, np.where(there, values, np.float32(np.nan)), there), int(
        measured.sum() - there.sum()
    )


def _rows_of(table: Table, *, validation: bool) -> NDArray[np.bool_]:
    """Which rows measured something in training, or in validation."""
    columns = [(name in _VALIDATIONS) == validation for name in table.names]
    return np.asarray(table.measured[:, columns].any(axis=1))


def _part(table: Table, *, validation: bool) -> Table:
    """What was measured in training, or in validation, where the loss is called so again."""
    columns = [at for at, name in enumerate(table.names) if (name in _VALIDATIONS) == validation]
    rows = _rows_of(table, validation=validation)
    names = tuple("loss" if table.names[at] == "val_loss" else table.names[at] for at in columns)
    return Table(names, table.steps[rows], table.values[rows][:, columns], table.measured[rows][:, columns])

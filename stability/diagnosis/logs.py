"""Read other people's logs: the official trainer's `training_log`, or step and metrics as CSV or JSONL.

A recording holds what the log says of one training: signals by step, validations by step. What a log does not
have is not made up: its signals are simply not there.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stability.diagnosis.signals import SIGNALS, VALIDATION, Table, read_table
from stability.errors import StabilityError

# What other projects call our signals; names are compared in lower case, without what stands before a slash.
_ALIASES = {
    "step": ("step", "global_step", "_step", "iteration", "iter", "batch", "train_step"),
    "loss": ("loss", "train_loss", "training_loss", "ctc_loss"),
    "grad_norm": ("grad_norm", "gradient_norm", "gradnorm", "grad norm", "total_norm", "grad_norm_total"),
    "lr": ("lr", "learning_rate"),
    "blank_fraction": ("blank_fraction", "blank_share", "blank_rate"),
    "per": ("per", "val_per", "eval_per", "wer", "val_wer", "cer", "val_cer"),
    "val_loss": ("val_loss", "eval_loss", "validation_loss", "valid_loss"),
}
_NAMES = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}
_VALIDATIONS = ("per", "val_loss")

_NUMBER = r"([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf))"
_TRAINED = re.compile(rf"Train batch (\d+): loss: {_NUMBER} grad norm: {_NUMBER}", re.IGNORECASE)
_VALIDATED = re.compile(rf"Val batch (\d+): PER \(avg\): {_NUMBER} CTC Loss \(avg\): {_NUMBER}", re.IGNORECASE)

Row = tuple[int, dict[str, float]]


@dataclass(frozen=True)
class Recording:
    """What a log says of one training. `notes` tell what in the log was left out or mended, for a person."""

    name: str
    signals: Table
    validation: Table
    notes: tuple[str, ...]
    official: bool = False  # the official trainer's log, so a healthy official run is a yardstick


def read_log(path: Path) -> Recording:
    """Read a log, or a trial's folder. StabilityError says what is wrong with one that holds no training."""
    if path.is_dir():
        signals = read_table(path / SIGNALS)
        if not len(signals.steps):
            raise StabilityError(
                f"{path} holds no {SIGNALS} with rows: it is no trial's folder, or nothing was trained."
            )
        return Recording(path.resolve().name, signals, read_table(path / VALIDATION), ())
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise StabilityError(f"{path} cannot be read: {error.strerror}.") from None
    if not text.strip():
        raise StabilityError(f"{path} is empty.")
    lines = text.splitlines()
    parse, header, expected = _format(lines)
    notes: list[str] = []
    rows: list[Row] = []
    for number, line in enumerate(lines[header:], header + 1):
        if not line.strip():
            continue
        try:
            row = parse(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            if number == len(lines) and not text.endswith("\n"):
                notes.append("The last line is cut off and was left out.")
                break
            raise StabilityError(f"{path}, line {number}: expected {expected}.") from None
        if row is not None:
            rows.append(row)
    if not any(_is_training(values) for _, values in rows):
        raise StabilityError(
            f"{path} holds no training that could be read: expected lines such as 'Train batch 200: loss: 94.31 "
            "grad norm: 48.85', or CSV or JSONL with a step and a loss or gradient norm."
        )
    rows = _last_start(rows, notes)
    tables = (_table(rows, training=True), _table(rows, training=False))
    return Recording(path.name, *tables, tuple(notes), official=parse is _official_row)


def from_metrics(name: str, history: Iterable[tuple[str, int, float]]) -> Recording:
    """A recording of (metric, step, value) in any order, under whatever names. StabilityError if none is known."""
    rows: dict[int, dict[str, float]] = {}
    for metric, step, value in history:
        rows.setdefault(step, {})[metric] = value
    parsed = [_row({"step": step, **metrics}) for step, metrics in sorted(rows.items())]
    if not any(_is_training(values) for _, values in parsed):
        raise StabilityError(f"{name} has no metric that is known as a training loss or gradient norm.")
    return Recording(name, _table(parsed, training=True), _table(parsed, training=False), ())


def _format(lines: list[str]) -> tuple[Callable[[str], Row | None], int, str]:
    """How to read a line of that log, how many lines to pass over first, and what a line should be."""
    first = lines[0].lstrip()
    if first.startswith("{"):
        return (lambda line: _row(json.loads(line))), 0, "an object with a step and its metrics"
    names = next(csv.reader([first]))
    if len(names) > 1 and _NAMES.keys() & {_plain(name) for name in names}:
        return (lambda line: _csv_row(names, line)), 1, f"{len(names)} numbers, a step among them: {','.join(names)}"
    return _official_row, 0, ""


def _official_row(line: str) -> Row | None:
    if match := _TRAINED.search(line):
        return int(match[1]), {"loss": float(match[2]), "grad_norm": float(match[3])}
    if match := _VALIDATED.search(line):
        return int(match[1]), {"per": float(match[2]), "val_loss": float(match[3])}
    return None


def _csv_row(names: list[str], line: str) -> Row:
    cells = zip(names, next(csv.reader([line])), strict=True)
    return _row({name: float(cell) for name, cell in cells if cell.strip()})


def _row(raw: Mapping[str, Any]) -> Row:
    """Step and numbers of a row, under our names; what is no number (a message, a date) is passed over."""
    values: dict[str, float] = {}
    for key, value in raw.items():
        prefix, _, _ = key.lower().rpartition("/")
        name = _NAMES.get(_plain(key))
        if name == "loss" and prefix.startswith(("val", "eval", "test")):
            name = "val_loss"
        if name is not None and isinstance(value, int | float | str) and not isinstance(value, bool):
            values[name] = float(value)
    step = values.pop("step")
    return int(step), values


def _is_training(values: Mapping[str, float]) -> bool:
    return bool(values.keys() - {*_VALIDATIONS})


def _plain(key: str) -> str:
    return key.strip().lower().rpartition("/")[2]


def _last_start(rows: list[Row], notes: list[str]) -> list[Row]:
    """The rows of the last training in the file. A step back to the start begins one; a smaller one is a resume."""
    first = rows[0][0]
    starts, kept = 1, list[Row]()
    previous = first
    for step, values in rows:
        training = _is_training(values)
        if training and step < previous:
            if step <= first:
                starts, kept = starts + 1, []
            else:
                notes.append(f"Resumed from step {step} after step {previous}: what came later is judged.")
                kept = [row for row in kept if row[0] < step]
        if training:
            previous = step
        kept.append((step, values))
    if starts > 1:
        notes.append(f"The log holds {starts} starts; the last is judged.")
    return kept


def _table(rows: list[Row], *, training: bool) -> Table:
    """One row a step; of what was said twice of a step, the later."""
    merged: dict[int, dict[str, float]] = {}
    for step, values in rows:
        own = {n: v for n, v in values.items() if (n in _VALIDATIONS) != training}
        if own:
            merged.setdefault(step, {}).update(own)
    names = tuple(dict.fromkeys(name for values in merged.values() for name in values))
    steps = sorted(merged)
    table = np.array([[merged[s].get(n, np.nan) for n in names] for s in steps], np.float32).reshape(
        len(steps), len(names)
    )
    measured = np.array([[n in merged[s] for n in names] for s in steps], bool).reshape(len(steps), len(names))
    renamed = tuple("loss" if n == "val_loss" else n for n in names)
    return Table(renamed, np.array(steps, np.int64), table, measured)

"""Reads the rows of a table: the step, and the numbers of the columns that are known."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from stability.diagnosis.readers.names import EXPLAINED, explained_names, find_columns, find_name, part_in, see_names

_NAN_IN_C = re.compile(r"[-+]?nan\(\w*\)", re.IGNORECASE)
_THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+(\.\d*)?")
DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+([eE][-+]?\d+)?")
_FIRST_OF_LIST = re.compile(r"\[\s*([-+.\deE]+)")
_NOT_MEASURED = ("", "none", "null", "na", "-", "n/a", "no log")
_ROLES = (
    (
        "split", "phase", "mode", "stage", "subset", "partition", "eval_split", "event", "type", "kind",
    ),
    ("tag", "metric", "name", "key", "metric_name"),
    ("value", "metric_value"),
)  # fmt: skip
_RUNS = (
    "run", "run_name", "run_id", "runid", "experiment", "experiment_name", "exp", "exp_name", "seed", "trial",
    "trial_id", "fold", "job_id",
)  # fmt: skip
_LARGEST_STEP = 2**53  # not every whole number beyond it is a float

Row = tuple[int | None, dict[str, float]]
"""The step of a row, None if it has none, and its numbers under the names that the log uses."""


class _Columns(NamedTuple):
    """What the columns of a log hold.

    Attributes:
        known: Index, title and signal of each known column but a second step, and whether it is the signal's best one.
        part: Index of the column that says on which part of the data a row was measured.
        named: Indices of the columns with the name and with the value of a measurement, if each row has one.
    """

    known: tuple[tuple[int, str, str, bool], ...]
    part: int | None
    named: tuple[int, int] | None


@lru_cache(maxsize=64)
def _known_columns(titles: tuple[str, ...], explained: tuple[tuple[str, str], ...]) -> _Columns:
    """What the columns hold. The names that the user explains are a part of the question, for the cache."""
    best = find_columns(titles)
    names = ((index, title, find_name(title)) for index, title in enumerate(titles))
    known = tuple(
        (index, title.strip(), name.signal, best[name.signal] == index)
        for index, title, name in names
        if name and (name.signal not in ("step", "epoch") or best[name.signal] == index)
    )
    plain = [title.strip().lower() for title in titles]
    part, name, value = (next((plain.index(title) for title in some if title in plain), None) for some in _ROLES)
    return _Columns(known, part, None if name is None or value is None else (name, value))


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without objects in it: `{"val": {"loss": 2}}` becomes `{"val/loss": 2}`."""
    cells = dict[str, Any]()
    for title, cell in row.items():
        cells |= {f"{title}/{inner}": c for inner, c in flat(cell).items()} if isinstance(cell, dict) else {title: cell}
    return cells


def run_in(titles: tuple[str, ...], cells: Sequence[object]) -> str:
    """Return what a row says of the run that it belongs to; nothing if no column does."""
    place = _run_column(titles)
    return "" if place is None else str(cells[place]).strip()


@lru_cache(maxsize=64)
def _run_column(titles: tuple[str, ...]) -> int | None:
    plain = [title.strip().lower() for title in titles]
    return next((plain.index(title) for title in _RUNS if title in plain), None)


def has_measurements(titles: tuple[str, ...]) -> bool:
    """Return whether columns have known names, or one has the names of measurements and another one the values."""
    columns = _known_columns(titles, explained_names())
    return bool(columns.known or columns.named)


def read_row(titles: tuple[str, ...], cells: Sequence[object]) -> Row:
    """Read the step and the numbers of a row. Columns that are not known (a message, a date) are ignored.

    Raises:
        ValueError: A known column holds no number. The message names the column and what was found.
    """
    step, values = None, dict[str, float]()
    columns = _known_columns(titles, explained_names())
    see_names(titles)
    part = "" if columns.part is None else part_in(str(cells[columns.part]).strip())
    for index, title, signal, best in columns.known:
        try:
            number = _read_number(cells[index], signal)
            if signal == "step":
                step = read_step(number)
            elif signal == "epoch":
                values |= {} if number is None else {"epoch": number}
            elif number is not None and (own := _in_part(title, cells[index], part)):
                values[own] = number
        except ValueError as error:
            if best and signal != "epoch":
                raise ValueError(f"column {titles[index]!r}: {error}, found {str(cells[index])[:40]!r}") from None
    if columns.named:
        title, cell = str(cells[columns.named[0]]), cells[columns.named[1]]
        see_names([title])
        own = _in_part(title, cell, part)
        name = find_name(own)
        if name and name.signal not in ("step", "epoch") and (number := _read_number(cell, name.signal)) is not None:
            values[own] = number
    return step, values


def _in_part(title: str, cell: object, part: str) -> str:
    """The name of a measurement in this row: with the part of the data, and with a percent sign if it has one."""
    if part and (name := find_name(title)) and name.signal != "lr" and not name.part and name.rank != EXPLAINED:
        title = f"{part}/{title}" if find_name(f"{part}/{title}") else ""
    return f"{title} %" if title and isinstance(cell, str) and cell.rstrip().endswith("%") else title


def read_step(number: float | None) -> int | None:
    """Turn a number into a step; None and NaN are no step. ValueError if it is not a whole number."""
    if number is None or math.isnan(number):
        return None
    if not is_count(number):
        raise ValueError("expected a whole number")
    return int(number)


def is_count(number: float) -> bool:
    """Return whether a number can be a step: whole, and small enough to be exact."""
    return abs(number) <= _LARGEST_STEP and number.is_integer()


def _read_number(cell: Any, signal: str = "") -> float | None:
    """The number in a cell; None if it is empty or holds an object. ValueError if it holds other text."""
    if isinstance(cell, bool):
        return None
    if isinstance(cell, list) and (len(cell) == 1 or (cell and signal == "lr")):  # the rate of each parameter group
        cell = cell[0]
    try:
        return float(cell)
    except TypeError:  # an object, a list, null
        return None
    except OverflowError:  # an integer of hundreds of digits
        return math.copysign(math.inf, cell > 0 or -1)
    except ValueError:
        text = str(cell).strip()
    if text.lower() in _NOT_MEASURED:
        return None
    if text.endswith("%"):
        return _read_number(text.removesuffix("%"))
    if _NAN_IN_C.fullmatch(text):
        return math.nan
    if _THOUSANDS.fullmatch(text):
        return float(text.replace(",", ""))
    if DECIMAL_COMMA.fullmatch(text):
        return float(text.replace(",", "."))
    if signal == "lr" and (match := _FIRST_OF_LIST.match(text)):
        return float(match[1])
    raise ValueError("expected a number or nothing")

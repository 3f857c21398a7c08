"""A table between other output: a header with a step or an epoch, then a row per step, as in a model card."""

from collections.abc import Callable
from contextlib import suppress

from stability.diagnosis.readers.columns import Row, read_row
from stability.diagnosis.readers.delimited import SPLITS, Split, is_header, is_rule
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.names import find_columns
from stability.diagnosis.readers.recording import Recording, record_lines

_SEARCHED = 2000  # lines in which the first row has to be
_LONGEST = 2000  # characters of a header


def read(log: Log) -> list[Recording] | None:
    """Read a text file that contains such a table. Lines of other kinds are ignored."""
    read_line = _find(log)
    return record_lines(log, read_line) or None if read_line else None


def _find(log: Log) -> Callable[[str], Row | None] | None:
    """The function that reads the lines of the first table in a log."""
    before = ""
    for number, line in enumerate(log):
        if number == _SEARCHED:
            return None
        if is_rule(line):
            continue
        for split in SPLITS:
            titles = split(before)
            place = _counted_at(titles)
            if place is not None and _is_row(split(line), titles, place):
                return _reader(titles, split, place)
        before = line if len(line) < _LONGEST else ""
    return None


def _counted_at(titles: tuple[str, ...]) -> int | None:
    """The place of the step or the epoch in a header; None if these are no titles of a table."""
    if len(titles) < 2 or not is_header(titles):
        return None
    found = find_columns(titles)
    return found.get("step", found.get("epoch")) if found.keys() - {"step", "epoch"} else None


def _is_row(cells: tuple[str, ...], titles: tuple[str, ...], place: int) -> bool:
    return len(cells) == len(titles) and not is_header((cells[place],))


def _reader(titles: tuple[str, ...], split: Split, place: int) -> Callable[[str], Row | None]:
    def read_line(line: str) -> Row | None:
        cells = split(line)
        if cells == titles:
            return None
        if _is_row(cells, titles, place):
            with suppress(ValueError):  # a line that only looks like a row
                return read_row(titles, cells)
        return None, {}

    return read_line

"""CSV, also with semicolons, tabs, bars or blanks: a header, then a row per step."""

import csv
import re
from collections.abc import Callable

from stability.diagnosis.readers.columns import DECIMAL_COMMA, has_measurements, read_row, run_in
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.names import find_columns, see_names
from stability.diagnosis.readers.recording import Recording, RunCollector, read_lines

Split = Callable[[str], tuple[str, ...]]

_SEPARATORS = ",;\t"
_EMPHASIS = re.compile(r"^(\*{1,3}|_{1,3}|`)(.+)\1$")  # of Markdown: `**0.15**`
_RULE = re.compile(r"[\s|:=+-]+")  # the line below the header of a table


def read(log: Log) -> list[Recording] | None:
    """Read a file whose first line names at least one column that is known."""
    header = log.first
    if header.lstrip().startswith(("{", "[")):
        return None
    split = max(SPLITS, key=lambda split: len(find_columns(split(header))) if len(split(header)) > 1 else 0)
    titles = split(header)
    if not has_measurements(titles) or not is_header(titles) or (split in _BLANKS and not _is_table(titles)):
        by_commas = split_commas(header)
        if len(by_commas) > 1:
            see_names(by_commas)
        return None

    rows = RunCollector()

    def read_line(line: str) -> None:
        nonlocal titles
        if is_rule(line) and split in (_split_bars, *_BLANKS):
            return
        cells = split(line)
        if len(cells) == len(titles) + 1 and not cells[-1].strip():  # a comma at the end
            cells = cells[:-1]
        if cells == titles or (cells[0] in titles and is_header(cells) and find_columns(cells)):
            titles = cells  # also in the middle: another run was appended, or there are other columns from here on
            rows.add_row(None)
        elif len(cells) != len(titles):
            raise ValueError(f"expected {len(titles)} cells, as in the header, found {len(cells)}")
        else:
            rows.add_row(read_row(titles, cells), run_in(titles, cells))

    notes = read_lines(log, read_line)
    return rows.recordings(log.path.name, notes)


def is_rule(line: str) -> bool:
    """Return whether a line is the rule between the header of a table and its rows."""
    return bool(_RULE.fullmatch(line))


def is_header(cells: tuple[str, ...]) -> bool:
    """Return whether no cell is a number."""
    return not any(re.fullmatch(r"\s*[-+]?[.,]?\d[\d.,]*([eE][-+]?\d+)?\s*%?\s*", cell) for cell in cells)


def _is_table(titles: tuple[str, ...]) -> bool:
    """Whether a line of words is a header: its first word counts, and it has the name of a measurement."""
    found = find_columns(titles)
    return 0 in (found.get("step"), found.get("epoch")) and bool(found.keys() - {"step", "epoch"})


def _split_at(separator: str) -> Split:
    def split(line: str) -> tuple[str, ...]:
        if '"' not in line:
            cells = tuple(line.rstrip("\n").split(separator))
        else:
            try:
                cells = tuple(next(csv.reader([line], delimiter=separator)))
            except csv.Error:  # a cell that is too long for it
                cells = tuple(line.split(separator))
        if separator == ",":
            return cells
        return tuple(cell.replace(",", ".") if DECIMAL_COMMA.fullmatch(cell.strip()) else cell for cell in cells)

    return split


def _split_bars(line: str) -> tuple[str, ...]:
    line = line.strip()
    if line.startswith("|"):  # else a bar at the end stands before an empty cell
        line = line.removeprefix("|").removesuffix("|")
    return tuple(_EMPHASIS.sub(r"\2", cell.strip()) for cell in line.split("|"))


def _split_blanks(line: str) -> tuple[str, ...]:
    return tuple(line.strip().lstrip("#").split())


def _split_wide_blanks(line: str) -> tuple[str, ...]:
    return tuple(re.split(r"\s{2,}", line.strip()))


split_commas = _split_at(",")
_BLANKS = (_split_blanks, _split_wide_blanks)
SPLITS = (*(_split_at(separator) for separator in _SEPARATORS), _split_bars, *_BLANKS)

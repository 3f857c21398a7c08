"""CSV, also with semicolons or tabs: a header, then a row per step."""

import csv

from stability.diagnosis.readers.columns import Row, find_columns, read_row, see_names
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.recording import Recording, record_lines

_SEPARATORS = ",;\t"


def read(log: Log) -> list[Recording] | None:
    """Read a file whose first line names at least one column that is known."""
    header = log.first
    if header.lstrip().startswith(("{", "[")):
        return None
    separator = max(_SEPARATORS, key=lambda separator: len(find_columns(_split(header, separator))))
    titles = _split(header, separator)
    if not find_columns(titles):
        by_commas = _split(header, ",")
        if len(by_commas) > 1:
            see_names(by_commas)
        return None

    def read_line(line: str) -> Row | None:
        if line == header:  # also in the middle, where another run was appended
            return None
        cells = _split(line, separator)
        if len(cells) != len(titles):
            raise ValueError(f"expected {len(titles)} cells, as in the header, found {len(cells)}")
        return read_row(titles, cells)

    return record_lines(log, read_line)


def _split(line: str, separator: str) -> tuple[str, ...]:
    if '"' not in line:
        return tuple(line.rstrip("\n").split(separator))
    try:
        return tuple(next(csv.reader([line], delimiter=separator)))
    except csv.Error:  # a cell that is too long for it
        return tuple(line.split(separator))

"""A JSON document: Hugging Face's `trainer_state.json`, an array of rows, or an object of lists, a list per metric."""

import json
from collections.abc import Iterator
from typing import Any

from stability.core.errors import StabilityError
from stability.diagnosis.readers.columns import find_columns, read_row, see_names
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.recording import Recording, RowCollector

_LARGEST = 1 << 28  # characters of a document: it has to be in memory as a whole
_HISTORIES = ("log_history", "history", "logs", "metrics")


def read(log: Log) -> list[Recording] | None:
    """Read a file that is one JSON document, and not an object per line."""
    if not _is_document(log.first.strip()):
        return None
    lines, size = list[str](), 0
    for line in log:
        lines.append(line)
        size += len(line)
        if size > _LARGEST:
            raise StabilityError(f"{log.path} is longer than {_LARGEST:,} characters, too long for a JSON document.")
    try:
        document = json.loads("".join(lines))
    except (ValueError, RecursionError) as error:
        raise StabilityError(f"{log.path} begins as a JSON document, but is none: {error}.") from None
    rows = RowCollector()
    for number, row in enumerate(_rows(document), 1):
        try:
            rows.add_row(read_row(tuple(row), tuple(row.values())))
        except ValueError as error:
            raise StabilityError(f"{log.path}, row {number}: {error}.") from None
    return rows.recordings(log.path.name)


def _is_document(first: str) -> bool:
    if first.startswith("["):
        return first[1:].lstrip()[:1] in ("", "{", "[")
    if not first.startswith("{"):
        return False
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return first == "{" or (first[1:].lstrip().startswith('"') and not first.endswith("}") and len(first) < 1000)
    known = find_columns(tuple(row))
    return any(isinstance(row.get(name), list | dict) for name in _HISTORIES) or (
        bool(known) and all(isinstance([*row.values()][index], list | dict) for index in known.values())
    )


def _rows(document: Any) -> Iterator[dict[str, Any]]:
    """The rows of a document, in any of its forms."""
    if isinstance(document, dict):
        for name in _HISTORIES:
            if isinstance(document.get(name), list | dict):
                yield from _rows(document[name])
                return
        columns = {
            title: [*column.values()] if isinstance(column, dict) else column
            for title, column in document.items()
            if isinstance(column, list | dict)
        }
        see_names(document)
        for number in range(max((len(column) for column in columns.values()), default=0)):
            yield {title: column[number] for title, column in columns.items() if number < len(column)}
    elif isinstance(document, list):
        for row in document:
            if isinstance(row, dict):
                yield row
            elif isinstance(row, list) and len(row) == 3:  # TensorBoard's page: the time, the step and the value
                yield {"step": row[1], "loss": row[2]}

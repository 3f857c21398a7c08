"""A JSON document: Hugging Face's `trainer_state.json`, an array of rows, as Chainer's `log`, or an object of lists.

It has a list per metric, or a list of values and one of steps, as Sacred's `metrics.json`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from stability.core.errors import StabilityError
from stability.diagnosis.readers.columns import flat, read_row
from stability.diagnosis.readers.log import DamagedLogError, Log
from stability.diagnosis.readers.names import find_columns, find_name, see_names
from stability.diagnosis.readers.recording import Recording, RowCollector

_BLANKS = re.compile(r"\s*")
_LARGEST = 1 << 28  # characters of a document: it has to be in memory as a whole


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
        document = _parse("".join(lines))
    except (ValueError, RecursionError) as error:
        raise StabilityError(f"{log.path} begins as a JSON document, but is none: {error}.") from None
    rows, notes = RowCollector(), list[str]()
    for number, row in enumerate(_rows(document, notes), 1):
        try:
            rows.add_row(read_row(tuple(row), tuple(row.values())))
        except ValueError as error:
            raise DamagedLogError(f"{log.path}, row {number}: {error}.") from None
    return rows.recordings(log.path.name, notes)


def _parse(text: str) -> Any:
    """The document in a text. Several, one after the other, are a list."""
    text = text.strip()
    documents, place = list[Any](), 0
    while place < len(text):
        document, end = json.JSONDecoder().raw_decode(text, place)
        documents.append(document)
        place = _next(text, end)
    return documents[0] if len(documents) == 1 else documents


def _next(text: str, place: int) -> int:
    """The next character from a place on that is no blank."""
    match = _BLANKS.match(text, place)
    return match.end() if match else place


def _is_document(first: str) -> bool:
    """Whether a file is one document, by its first line. Else it may be an object per line."""
    if first.startswith("["):
        return first[1:].lstrip()[:1] in ("", "{", "[")
    if not first.startswith("{"):
        return False
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return first == "{" or (first[1:].lstrip().startswith('"') and not first.endswith("}") and len(first) < 1000)
    cells = {title: cell for title, cell in flat(row).items() if not any(map(str.isdigit, title.split("/")))}
    known = find_columns(tuple(cells))
    signals = [[*cells.values()][place] for signal, place in known.items() if signal not in ("step", "epoch")]
    return bool(_lists_of_rows(row) or _columns(row)) and all(isinstance(cell, list) for cell in signals)


def _rows(document: Any, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a document, in any of its forms."""
    if isinstance(document, list):
        for row in document:
            if isinstance(row, dict):
                yield flat(row)
            elif isinstance(row, list) and len(row) == 3:  # TensorBoard's page: the time, the step and the value
                yield {"step": row[1], "loss": row[2]}
    elif isinstance(document, dict):
        lists, columns = _lists_of_rows(document), _columns(document)
        if lists and not _has_loss(columns):
            yield from _rows(max(lists, key=len), notes)
        else:
            see_names(document)
            yield from _rows_of_columns(columns, notes)


def _has_loss(columns: Mapping[str, Any]) -> bool:
    return any((name := find_name(title)) and name.signal == "loss" for title in columns)


def _lists_of_rows(document: Mapping[str, Any]) -> list[list[Any]]:
    """The lists of objects in a document, such as the `log_history` of Hugging Face's trainer."""
    found = list[list[Any]]()
    for cell in document.values():
        if isinstance(cell, dict):
            found += (
                [[*cell.values()]] if _is_numbered(cell) and _holds_rows([*cell.values()]) else _lists_of_rows(cell)
            )
        elif isinstance(cell, list) and _holds_rows(cell):
            found.append(cell)
    return found


def _holds_rows(cells: list[Any]) -> bool:
    return any(isinstance(cell, dict) and find_columns(tuple(flat(cell))) for cell in cells[:3])


def _is_numbered(cell: Mapping[str, Any]) -> bool:
    return bool(cell) and all(key.isdigit() for key in cell)


def _columns(document: Mapping[str, Any], prefix: str = "") -> dict[str, list[Any]]:
    """The lists of numbers in a document, by their names: `val/loss` if it has `{"val": {"loss": […]}}`."""
    columns = dict[str, list[Any]]()
    for title, cell in document.items():
        if isinstance(cell, dict):
            own = {title: pairs} if (pairs := _pairs(cell)) else _columns(cell, f"{title}/")
            columns |= {f"{prefix}{name}": column for name, column in own.items()}
        elif isinstance(cell, list):
            columns[f"{prefix}{title}"] = cell
    return {title: column for title, column in columns.items() if find_name(title)}


def _pairs(cell: Mapping[str, Any]) -> list[Any]:
    """The numbers of an object that has a step for each of them; none if it is of another kind."""
    if _is_numbered(cell):
        return _numbered(cell)
    match cell:
        case {"steps": [*steps], "values": [*values]}:  # Sacred
            return [[*pair] for pair in zip(steps, values, strict=False)]
    return []


def _numbered(cell: Mapping[str, Any]) -> list[Any]:
    """The numbers of an object whose keys are the places in a list, or else steps."""
    keys = [int(key) for key in cell]
    return (
        [*cell.values()] if keys == [*range(len(keys))] else [[*pair] for pair in zip(keys, cell.values(), strict=True)]
    )


def _rows_of_columns(columns: Mapping[str, list[Any]], notes: list[str]) -> Iterator[dict[str, Any]]:
    """Row for row. What has far fewer values than the longest column was measured at the end of equal parts of it."""
    for title in [title for title, column in columns.items() if _are_pairs(column)]:
        yield from ({"step": step, title: value} for step, value in columns[title])
    columns = {title: column for title, column in columns.items() if not _are_pairs(column)}
    length = max((len(column) for column in columns.values()), default=0)
    places = dict[str, dict[int, int]]()
    for title, column in columns.items():
        places[title] = {place: place for place in range(len(column))}
        if column and length >= 2 * len(column):
            places[title] = {(place + 1) * length // len(column) - 1: place for place in range(len(column))}
            notes.append(f"{title} has {len(column):,} of {length:,} values: they were spread evenly.")
    for row in range(length):
        yield {title: column[places[title][row]] for title, column in columns.items() if row in places[title]}


def _are_pairs(column: list[Any]) -> bool:
    """Whether each number in a list has its step."""
    return bool(column) and all(isinstance(cell, list) and len(cell) == 2 for cell in column)

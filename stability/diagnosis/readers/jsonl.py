"""JSON Lines: an object with a step and its metrics per line."""

import json
import re
from typing import Any

from stability.diagnosis.readers.columns import flat, read_row, run_in
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.recording import Recording, RunCollector, read_lines

# What is not finite, as C prints it: no JSON, but common.
_CONSTANT_IN_C = re.compile(r"(?<=:)\s*(-?)\+?(?:(nan)(?:\(\w*\))?|inf(?:inity)?)\s*(?=[,}])", re.IGNORECASE)


def read(log: Log) -> list[Recording] | None:
    """Read a file whose first line begins an object of JSON. A dict of Python has other quotes."""
    first = log.first.lstrip()
    if not first.startswith("{") or first.startswith("{'"):
        return None
    rows = RunCollector()

    def read_line(line: str) -> None:
        row = flat(_parse(line))
        titles, cells = tuple(row), tuple(row.values())
        rows.add_row(read_row(titles, cells), run_in(titles, cells))

    notes = read_lines(log, read_line)
    return rows.recordings(log.path.name, notes)


def _parse(line: str) -> dict[str, Any]:
    try:
        try:
            row = json.loads(line)
        except ValueError:
            row = json.loads(_CONSTANT_IN_C.sub(lambda match: "NaN" if match[2] else match[1] + "Infinity", line))
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ValueError("expected an object with a step and its metrics")
    return row

"""JSON Lines: an object with a step and its metrics per line."""

import json
import re

from stability.diagnosis.readers.columns import Row, flat, read_row
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.recording import Recording, record_lines

# What is not finite, as C prints it: no JSON, but common.
_CONSTANT_IN_C = re.compile(r"(?<=:)\s*(-?)\+?(?:(nan)(?:\(\w*\))?|inf(?:inity)?)\s*(?=[,}])", re.IGNORECASE)


def read(log: Log) -> list[Recording] | None:
    """Read a file whose first line begins an object of JSON. A dict of Python has other quotes."""
    first = log.first.lstrip()
    return record_lines(log, _read_line) if first.startswith("{") and not first.startswith("{'") else None


def _read_line(line: str) -> Row:
    try:
        try:
            row = json.loads(line)
        except ValueError:
            row = json.loads(_CONSTANT_IN_C.sub(lambda match: "NaN" if match[2] else match[1] + "Infinity", line))
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ValueError("expected an object with a step and its metrics")
    row = flat(row)
    return read_row(tuple(row), tuple(row.values()))

"""Hugging Face's console: lines with `{'loss': 2.1, 'grad_norm': 3.4, 'epoch': 0.1}`, between other output."""

import re

from stability.diagnosis.readers.columns import Row, read_row
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.recording import Recording, record_lines

_DICT = re.compile(r"\{('[^{}]*)\}")
_PAIR = re.compile(r"'([^']+)':\s*'?([^,'\s]+)'?")


def read(log: Log) -> list[Recording] | None:
    """Read a text file that contains such a line with a name that is known. Lines of other kinds are ignored."""
    return record_lines(log, _read_line) or None


def _read_line(line: str) -> Row:
    found = _DICT.search(line)
    pairs = _PAIR.findall(found[1]) if found else []
    if not pairs:
        return None, {}
    titles, cells = zip(*pairs, strict=True)
    step, values = read_row(titles, cells)
    return step, values if values.keys() - {"epoch"} else {}

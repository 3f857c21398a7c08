"""The official trainer's `training_log`, also between other output."""

import re

from stability.diagnosis.readers.columns import Row, read_step
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.recording import Recording, record_lines

_NUMBER = r"([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf))"
_TRAINING = re.compile(rf"Train batch (\d+): loss: {_NUMBER} grad norm: {_NUMBER}\s", re.IGNORECASE)
_VALIDATION = re.compile(rf"Val batch (\d+): PER \(avg\): {_NUMBER} CTC Loss \(avg\): {_NUMBER}\s", re.IGNORECASE)


def read(log: Log) -> list[Recording] | None:
    """Read a text file that contains such a line. Lines of other kinds are ignored."""
    return record_lines(log, _read_line, official=True) or None


def _read_line(line: str) -> Row:
    if match := _TRAINING.search(line):
        return read_step(float(match[1])), {"loss": float(match[2]), "grad_norm": float(match[3])}
    if match := _VALIDATION.search(line):
        return read_step(float(match[1])), {"per": float(match[2]), "val_loss": float(match[3])}
    return None, {}

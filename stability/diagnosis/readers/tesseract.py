"""Tesseract's `lstmtraining`: `At iteration 83/100/100, mean rms=6.318%, delta=41.612%, BCER train=96.696%, …`.

The three numbers count the lines that taught something, the lines in training, and those that were looked at. A test on
held-out lines gives the first number only, and comes later: `At iteration 83, stage 0, Eval Char error rate=97.1, …`.
"""

import re
from collections import deque

from stability.diagnosis.readers.columns import read_row
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.recording import Recording, RowCollector, read_lines

# Older versions call the character error rate `char train`. What follows a colon is of a second trainer, on trial.
_TRAINED = re.compile(
    r"(?<!:)\bAt iteration (\d+)/(\d+)(?:/\d+)?, mean rms=([^%,\s]+)%"
    r"(?:, delta=[^%,\s]+%)?, (?:BCER|char) train=([^%,\s]+)%",
    re.IGNORECASE,
)
_TESTED = re.compile(r"At iteration (\d+), stage \d+, (?:Eval Char error rate|BCER eval)=([^%,\s]+)", re.IGNORECASE)
_REMEMBERED = 1000  # lines of the training, to which a test may belong
_FEW = 2  # tests: fewer say nothing of how the training went
_RMS = "Tesseract prints no loss: the mean rms takes its place."
_OF_TRAINING = "The log has too few error rates of held-out data: the one of training data takes their place."


def read(log: Log) -> list[Recording] | None:
    """Read a text file with such lines. Lines of other kinds are ignored."""
    trained, tested = RowCollector(), RowCollector()
    iterations = deque[tuple[int, int]](maxlen=_REMEMBERED)
    tests = 0

    def read_line(line: str) -> None:
        nonlocal tests
        if "teration " not in line:
            return
        if match := _TRAINED.search(line):
            iterations.append((int(match[1]), int(match[2])))
            trained.add_row(read_row(("step", "loss", "CER"), (match[2], match[3], f"{match[4]}%")))
            tested.add_row(read_row(("step", "loss"), (match[2], match[3])))
        for test in _TESTED.finditer(line):
            learned = int(test[1])
            step = next((step for before, step in reversed(iterations) if before <= learned), learned)
            tested.add_row(read_row(("step", "eval CER"), (step, f"{test[2]}%")))
            tests += 1

    notes = [_RMS, *read_lines(log, read_line)]
    if not iterations:
        return None
    if tests < _FEW:
        return trained.recordings(log.path.name, [*notes, _OF_TRAINING])
    return tested.recordings(log.path.name, notes)

"""Hugging Face's console: lines with `{'loss': 2.1, 'grad_norm': 3.4, 'epoch': 0.1}`, between other output."""

import re
from contextlib import suppress

from stability.diagnosis.readers.columns import Row, read_row
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.names import TRAINING, find_name
from stability.diagnosis.readers.recording import MOST_EPOCHS, Recording, RowCollector, read_lines

_DICT = re.compile(r"\{('[^{}]*)\}")
_PAIR = re.compile(r"'([^']+)':\s*(?:[\w.]+\()?'?([^,'\s()]+)'?")
_BAR = re.compile(r"\|\s*(\d{1,12})/(\d{1,12}) \[")  # a progress bar: the step of how many
_TOTAL = re.compile(r"(Total optimization steps|Num Epochs) = (\d[\d,]{,14})")
_SUMMARY = "train_runtime"  # is in the dict that is printed at the end, with the mean of all losses
_MOST_BARS = 100


def read(log: Log) -> list[Recording] | None:
    """Read a text file that contains such a line with a name that is known. Lines of other kinds are ignored.

    A dict has an epoch, but often no step. The step is that of the progress bar next to it. Without a bar, it is the
    epoch times the steps of an epoch, if the log has the total number of steps.
    """
    with_bar, without_bar, steps = RowCollector(), RowCollector(), _Steps()

    def read_line(line: str) -> None:
        steps.see(line)
        step, values = _read_dict(line)
        if values:
            training = any((name := find_name(title)) and name.signal in TRAINING for title in values)
            without_bar.add(steps.of_epoch(values.get("epoch")) if step is None else step, dict(values))
            with_bar.add(steps.of_bar(training=training) if step is None else step, values)

    notes = read_lines(log, read_line)
    runs = (with_bar if steps.reliable else without_bar).recordings(log.path.name, notes)
    return runs if any(len(run.signals.steps) for run in runs) else None  # lines of another kind may have the training


class _Steps:
    """The step at which a dict was printed, if the dict does not say it."""

    def __init__(self) -> None:
        self._bars: dict[int, int] = {}  # the last step of each progress bar, by its number of steps
        self._total: int | None = None  # the number of steps of the bar that shows the training
        self._last: int | None = None
        self._dicts = self._repeated = 0
        self._said: dict[str, int] = {}

    def see(self, line: str) -> None:
        """Follow the progress bars."""
        for match in _BAR.finditer(line):
            total = int(match[2])
            self._bars.pop(total, None)  # so that the newest one is the last
            self._bars[total] = int(match[1])
            if len(self._bars) > _MOST_BARS:
                del self._bars[next(iter(self._bars))]
        if said := _TOTAL.search(line):
            self._said[said[1]] = int(said[2].replace(",", ""))

    def of_bar(self, *, training: bool) -> int | None:
        """The step of the bar that shows the training. Validations have a bar of their own."""
        if training and self._bars and self._total is None:
            self._total = next(reversed(self._bars))  # the bar that was printed last
        step = None if self._total is None else self._bars.get(self._total)
        if training:
            self._dicts += 1
            self._repeated += step is None or step == self._last
            self._last = step
        return step

    def of_epoch(self, epoch: float | None) -> int | None:
        """The epoch in steps."""
        if epoch is None or not 0 <= epoch < MOST_EPOCHS or len(self._said) < 2 or not self._said["Num Epochs"]:
            return None
        return round(epoch * self._said["Total optimization steps"] / self._said["Num Epochs"])

    @property
    def reliable(self) -> bool:
        """Whether the bars went on between the dicts. They do not if the log is of two streams."""
        return self._dicts > 0 and 10 * self._repeated <= self._dicts


def _read_dict(line: str) -> Row:
    found = _DICT.search(line) if line.count("{") == 1 else None
    pairs = [pair for pair in _PAIR.findall(found[1]) if _is_number(pair[1])] if found else []
    if not pairs:
        return None, {}
    titles, cells = zip(*pairs, strict=True)
    if _SUMMARY in titles:
        return None, {}
    step, values = read_row(titles, cells)
    signals = {name.signal for title in values if (name := find_name(title))}
    return step, values if signals - {"epoch", "lr", "loss_scale"} else {}  # others are lists of settings


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return True
    return False

"""Text with `name: value`, `name=value` or `name value`: the logs of icefall, ESPnet, fairseq, nanoGPT and others.

Each number on a line belongs to the words before it. Names that are known are read, and all else is ignored. A batch
that is counted from 0 in every epoch is counted on, so that steps grow.
"""

import re

from stability.diagnosis.readers.columns import Known, Row, find_name, read_step, see_names
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.recording import Recording, RowCollector, read_lines

_NUMBER = re.compile(
    r"(?<![\w.])([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf(?:inity)?))(?![\w.]*\w)", re.IGNORECASE
)
_DELIMITERS = re.compile(r"""[,|;:\[\](){}"'=\t]|\s-+\s|->""")
_ESPNET = ((re.compile(r"(\d+)epoch"), r" epoch \1 "), (re.compile(r"(?:\d+)-(\d+)batch"), r" batch \1 "))
_SOURCE = re.compile(r"[\w./-]+:\d+\]")  # the file and line that logged: `wer:318]`
_BAR = re.compile(r"\|\s*(\d+)/\d+ \[\d")  # a progress bar: the step of how many
_HELD_OUT = re.compile(r"\b(valid(ation|ating)?|val|eval(uation|uating)?|dev|test)\b", re.IGNORECASE)
_TRAINED_ON = re.compile(r"\b(train(ing)?|train_inner)\b", re.IGNORECASE)
_FILLERS = re.compile(r"((^|\s+)(reached|is|of|was|at|to|now))+$", re.IGNORECASE)
_PLAIN = ("average", "avg", "mean", "current", "running", "the", "and", "final", "last", "at", "for", "batch", "step")
_IN_EPOCH = ("batch", "iter", "iteration", "itr", "step")
_MOST_WORDS = 4


def read(log: Log) -> list[Recording] | None:
    """Read a text file with a line that has a known name. Lines of other kinds are ignored."""
    rows, steps = RowCollector(), _Steps()

    def read_line(line: str) -> None:
        row = _read_line(line, steps)
        if row is not None:
            rows.add_row(row)

    read_lines(log, read_line)
    return rows.recordings(log.path.name) or None


class _Steps:
    """Counts on where the batches of an epoch begin again."""

    def __init__(self) -> None:
        self._epoch: float | None = None
        self._offset, self._last = 0, -1

    def whole(self, step: int, epoch: float | None) -> int:
        """The step since the start of the training."""
        if epoch is not None and self._epoch is not None and epoch < self._epoch:
            self._offset, self._last = 0, -1  # another run
        elif (
            epoch is not None and self._epoch is not None and epoch > self._epoch and step + self._offset <= self._last
        ):
            self._offset = self._last + 1 - min(step, 1)
        if epoch is not None:
            self._epoch = epoch
        self._last = step + self._offset
        return self._last

    @property
    def last(self) -> int | None:
        """The last step, for a validation that is logged without one."""
        return self._last if self._last >= 0 else None


def _read_line(line: str, steps: _Steps) -> Row | None:
    line = _SOURCE.sub("]", line)
    for pattern, words in _ESPNET:
        line = pattern.sub(words, line)
    bar = _BAR.search(line)
    found: dict[str, tuple[Known, float, str]] = {}
    held_out = training = False
    end = 0
    for match in _NUMBER.finditer(line):
        before, end = line[end : match.start()], match.end()
        phrases = [phrase.strip(" /%*#>.") for phrase in _DELIMITERS.split(before)]
        phrases = [own for phrase in phrases if (own := _FILLERS.sub("", phrase))]
        if not phrases:
            continue
        for phrase in phrases[:-1]:
            if _HELD_OUT.search(phrase) and "." not in phrase:
                held_out, training = True, False
            elif _TRAINED_ON.search(phrase) and "." not in phrase:
                held_out, training = False, True
        named = _name(phrases[-1])
        if named is None:
            continue
        name, title = named
        if held_out and not name.part:
            if name.signal == "loss":
                title = f"val_{title}"
                name = find_name(title) or name
            elif name.signal in ("grad_norm", "lr", "blank_fraction"):
                continue
        elif training and name.signal == "per":
            continue
        if name.signal not in found or name.rank < found[name.signal][0].rank:
            found[name.signal] = name, float(match[1]), title
    epoch = found["epoch"][1] if "epoch" in found else None
    step: int | None = None
    if "step" in found:
        name, number, title = found["step"]
        step = read_step(number) if number == int(number) else None
        in_epoch = title.lower() in _IN_EPOCH
    elif bar:
        step, in_epoch = int(bar[1]), True
    values = {title: number for signal, (_, number, title) in found.items() if signal not in ("step", "epoch")}
    if not values:
        see_names(title for _, _, title in found.values())
        return None
    step = steps.last if step is None else steps.whole(step, epoch if in_epoch else None)
    if epoch is not None and step is None:
        values["epoch"] = epoch
    return step, values


def _name(phrase: str) -> tuple[Known, str] | None:
    """The known name at the end of a phrase. Words before it may not make it the name of something else."""
    words = phrase.split()
    for count in range(min(_MOST_WORDS, len(words)), 0, -1):
        title = " ".join(words[-count:])
        if name := find_name(title):
            before = words[-count - 1] if count < len(words) else ""
            other = before.isalpha() and before.islower() and before not in _PLAIN
            return None if other and name.signal not in ("step", "epoch") else (name, title)
    return None

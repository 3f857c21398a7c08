"""Text with `name: value`, `name=value` or `name value`: the logs of icefall, ESPnet, fairseq, nanoGPT and others.

Each number on a line belongs to the words before it. Names that are known are read, and all else is ignored. A batch
that is counted from 0 in every epoch is counted on, so that steps grow.
"""

import re
from typing import NamedTuple

from stability.diagnosis.readers.columns import Known, Row, find_name, part_in, see_names
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.recording import Recording, RowCollector, read_lines
from stability.diagnosis.readers.runs import is_validation

_NUMBER = re.compile(
    r"(?<![\w.])([-+]?(?:\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
    r"|[-+]?(?:nan|inf(?:inity)?))(?![\w.]*\w)(\s*%)?",
    re.IGNORECASE,
)
_DELIMITERS = re.compile(r"""[,|;:\[\](){}"'=\t]|\s-+\s|->""")
_SPELLINGS = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"[\w./-]+:\d+\]", "]"),  # the file and line that logged: `wer:318]`
        (r"\b(?:np\.float\d+|tensor|array)\(", " "),
        (r"(\d+)epoch\b", r" epoch \1 "),  # ESPnet
        (r"\b\d+-(\d+)batch\b", r" batch \1 "),
        (r"\b(TRAIN|CV) Batch (\d+)/(\d+)", r"\1 | epoch \2 | batch \3 "),  # WeNet
        (r"\b(Epoch|Iter)\((\w+)\)\s*\[\s*(\d+)[^\]]*\]", r"\2 | \1 \3 | "),  # OpenMMLab
        (r"\[(\d+)/\d+\]\s*\[\s*(\d+/\d+)\]", r"| epoch \1 | batch \2 | "),  # `[0/25][100/1000]`
        (r"\[(\d+)\]\s*\[\s*(\d+/\d+)\]", r" \1 | batch \2 | "),  # `Epoch: [0][10/5005]`
        (
            r"((?:^|[^a-zA-Z\s:=]|\s\s)\s*)\[\s*(\d+/\d+)( \(\d+%\))?\]",
            r"\1 | batch \2 | ",
        ),  # `Epoch: 1 [640/28539 (2%)]`
        (r"(?:\||^)\s*(\d+/\d+) (\[|━)", r"| batch \1 | "),  # a progress bar
    )
)
_LINE_IN_PLACE = re.compile(r".*\x08", re.DOTALL)  # what a progress bar has written over
_HELD_OUT = re.compile(r"\b(valid(ation|ating)?|val|eval(uation|uating)?|dev|test(ing)?|cv)\b", re.IGNORECASE)
_TRAINED_ON = re.compile(r"\b(train(ing)?|train_inner)\b", re.IGNORECASE)
_HEADING = re.compile(r"\W*([A-Za-z]+(?: [A-Za-z]+){,2}):\s*")  # `Validation:`, with its numbers on the lines below
_FILLERS = re.compile(r"((^|\s+)(reached|is|of|was|at|to|now|value))+$", re.IGNORECASE)
_PLAIN = (
    "average", "avg", "mean", "current", "running", "the", "and", "final", "last", "at", "for", "batch", "step", "info",
    "debug", "epoch", "train", "training",
)  # fmt: skip
_OF_ANOTHER = ("best", "min", "lowest", "previous", "target")
_IN_TOTAL = ("global_step", "num_updates", "nupdates", "updates")  # are never counted from 0 again
_MOST_WORDS = 4


def read(log: Log) -> list[Recording] | None:
    """Read a text file with a line that has a known name. Lines of other kinds are ignored."""
    rows, lines = RowCollector(), _Lines()

    def read_line(line: str) -> None:
        row = lines.read(line)
        if row is not None:
            rows.add_row(row)

    read_lines(log, read_line)
    return rows.recordings(log.path.name) or None


class _Number(NamedTuple):
    """A number on a line that has a known name.

    Attributes:
        name: What the name means.
        rank: If a line has several for one signal, the one with the least rank counts.
        title: The name as the line has it.
        value: The number.
        total: The number behind a slash: the 600 in `batch 100/600`.
        alone: Whether the line has nothing else.
    """

    name: Known
    rank: tuple[int, ...]
    title: str
    value: float
    total: int | None
    alone: bool


class _Lines:
    """Reads the lines of a log, one after the other."""

    def __init__(self) -> None:
        self._steps = _Steps()
        self._part = ""  # the part of the data that a heading names

    def read(self, line: str) -> Row | None:
        """The row of a line. None if it has no known name."""
        line = _LINE_IN_PLACE.sub("", line)
        for pattern, words in _SPELLINGS:
            line = pattern.sub(words, line)
        if heading := _HEADING.fullmatch(line):
            self._part = part_in(heading[1]) or self._part
        found = _find(line)
        if found.keys() & {"step", "epoch"}:
            self._part = ""
        elif self._part == "val":
            found = _find(line, held_out=True)
        epoch = found.pop("epoch", None)
        step = found.pop("step", None)
        if not found:
            see_names(number.title for number in (epoch, step) if number)
            self._count(epoch, step)
            return None
        return self._row(epoch, step, {number.title: number.value for number in found.values()})

    def _count(self, epoch: _Number | None, step: _Number | None) -> None:
        """Follow a line that only counts, such as `Epoch 1/50`."""
        if epoch and epoch.alone and epoch.title.lower() == "epoch":
            self._steps.see_epoch(epoch.value)
        if step and step.alone and step.value.is_integer():
            self._steps.whole(step)

    def _row(self, epoch: _Number | None, step: _Number | None, values: dict[str, float]) -> Row | None:
        if epoch:
            self._steps.see_epoch(epoch.value)
        if step and is_validation(values) and self._steps.counts_own(step, epoch):
            step = None
        if step and step.value.is_integer():
            return self._steps.whole(step, values), values
        if (last := self._steps.last) is not None:
            values = self._steps.new_values(values)
            return (last, values) if values else None
        if self._steps.epoch is not None:
            values["epoch"] = self._steps.epoch
        return None, values


class _Steps:
    """Counts on where the batches of an epoch begin again."""

    def __init__(self) -> None:
        self.epoch: float | None = None
        self._begins: dict[int, int] = {}  # where each epoch began
        self._offset, self._last = 0, -1
        self._turned = False  # whether another epoch has begun since the last step
        self._titles = set[str]()  # what was measured at the last step

    def see_epoch(self, epoch: float) -> None:
        """Follow the epochs. A smaller one is a resume, or another run if it is the first one."""
        if self.epoch is None or int(epoch) > int(self.epoch):
            self._turned = True
        elif int(epoch) < int(self.epoch):
            self._turned = False
            self._offset, self._last = self._begins.get(int(epoch), 0), -1
            if epoch <= min(self._begins, default=0):
                self._begins.clear()
        self.epoch = epoch

    def whole(self, number: _Number, titles: "dict[str, float] | None" = None) -> int:
        """The step since the start of the training."""
        step, total = int(number.value), number.total
        if number.title.lower() in _IN_TOTAL:
            self._offset = 0
        elif self._turned and step + self._offset <= self._last:
            self._offset = max(self._last + 1 - min(step, 1), self._offset + (total or 0))
        if self.epoch is not None:
            self._begins.setdefault(int(self.epoch), self._offset)
        if step + self._offset != self._last:
            self._titles.clear()
        self._titles.update(titles or ())
        self._last = step + self._offset
        # A bar that is full is followed by that of the next epoch.
        self._turned = number.title == "batch" and step == total
        return self._last

    @property
    def last(self) -> int | None:
        """The last step, for a validation that is logged without one."""
        return self._last if self._last >= 0 else None

    def counts_own(self, step: _Number, epoch: _Number | None) -> bool:
        """Whether a step in a validation counts the batches of the validation."""
        again = epoch is not None and step.value <= self._last - self._offset
        return self.last is not None and (step.total is not None or again)

    def new_values(self, values: dict[str, float]) -> dict[str, float]:
        """What was not measured yet at the last step. The rest are means over the epoch."""
        return {title: value for title, value in values.items() if is_validation([title]) or title not in self._titles}


def _find(line: str, *, held_out: bool = False) -> dict[str, _Number]:
    """The numbers on a line that have a known name: the best one for each signal."""
    found: dict[str, _Number] = {}
    training = False
    end = 0
    for match in _NUMBER.finditer(line):
        before, end = line[end : match.start()], match.end()
        phrases = [phrase.strip(" /%*#>.") for phrase in _DELIMITERS.split(before)]
        phrases = [own for phrase in phrases if (own := _FILLERS.sub("", phrase))]
        if not phrases:
            continue
        named = _name(phrases[-1])
        counts = named is None or named[0].signal in ("step", "epoch")
        for phrase in phrases if counts else phrases[:-1]:
            if _HELD_OUT.search(phrase) and "." not in phrase:
                held_out, training = True, False
            elif _TRAINED_ON.search(phrase) and "." not in phrase:
                held_out, training = False, True
        if named is None:
            continue
        name, title, unsure = named
        if held_out and not name.part:
            if name.signal == "loss":
                title = f"val_{title}"
                name = find_name(title) or name
            elif name.signal in ("grad_norm", "lr", "blank_fraction"):
                continue
        elif training and name.signal == "per" and not name.part:
            continue
        rank = (int(unsure), *name.rank)
        if name.signal not in found or rank < found[name.signal].rank:
            total = re.match(r"\s*/\s*(\d+)", line[end:])
            found[name.signal] = _Number(
                name,
                rank,
                f"{title} %" if match[2] and name.signal == "per" else title,
                _value(match[1], name.signal),
                int(total[1]) if total else None,
                alone=phrases == [title] and not re.search(r"\w", line[end + (total.end() if total else 0) :]),
            )
    return found


def _value(text: str, signal: str) -> float:
    """The number in a text with commas: those of thousands, or those of a list."""
    if "," in text and signal not in ("step", "epoch") and "." not in text:
        text = text.partition(",")[0]
    return float(text.replace(",", ""))


def _name(phrase: str) -> tuple[Known, str, bool] | None:
    """The known name at the end of a phrase, and whether it may be of something else: the words before it say so."""
    words = phrase.split()
    for count in range(min(_MOST_WORDS, len(words)), 0, -1):
        title = " ".join(words[-count:])
        if name := find_name(title):
            before = words[-count - 1] if count < len(words) else ""
            counts = name.signal in ("step", "epoch")
            known = counts or not before.isalpha() or before.lower() in _PLAIN
            other = before.lower() in _OF_ANOTHER or (not known and before.islower())
            return None if other and not counts else (name, title, not known)
    return None

"""Text with `name: value`, `name=value` or `name value`: the logs of icefall, ESPnet, fairseq, nanoGPT and others.

Each number on a line belongs to the words before it. Names that are known are read, and all else is ignored. A batch
that is counted from 0 in every epoch is counted on, so that steps grow.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from stability.diagnosis.readers.columns import Row, is_count
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.names import TRAINING, Known, find_name, part_in, see_names
from stability.diagnosis.readers.recording import MOST_EPOCHS, Recording, RowCollector, read_lines
from stability.diagnosis.readers.runs import is_validation
from stability.diagnosis.readers.steps import Steps

_NUMBER = re.compile(
    r"(?<![\w.])([-+]?(?:\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
    r"|[-+]?(?:nan|inf(?:inity)?))(?![\w.]*\w)(\s*%)?",
    re.IGNORECASE,
)
_DELIMITERS = re.compile(r"""[,|;:\[\](){}"'=\t]|\s-+\s|->""")
_BAR, _UNNAMED = "itr", "batch"  # what the steps of progress bars, and those without a name, are called here
# Spellings of some trainers, and how they are read. A line without the first text is left alone, which saves time.
_SPELLINGS = tuple(
    (needed, re.compile(pattern), words)
    for needed, pattern, words in (
        ("]", r"(?<![\w./-])[\w./-]+:\d+\]", "]"),  # the file and line that logged: `wer:318]`
        ("(", r"\b(?:np\.float\d+|tensor|array)\(", " "),
        ("epoch", r"(\d+)epoch\b", r" epoch \1 "),  # ESPnet
        ("batch", r"\b\d+-(\d+)batch\b", r" batch \1 "),
        ("s/batch", r"\bm?s/batch\b", "time"),
        # WeNet: `TRAIN Batch 3/400`, and since 2024 `TRAIN | steps/sec 2.150| Batch 3/400`
        ("Batch", r"\b(TRAIN|CV)\b(.*?)\bBatch (\d+)/(\d+)", r"\1\2 | epoch \3 | batch \4 "),
        ("(", r"\b(Epoch|Iter)\((\w+)\)\s*\[\s*(\d+)[^\]]*\]", r"\2 | \1 \3 | "),  # OpenMMLab
        ("/", r"\[(\d+)/\d+\]\s*\[\s*(\d+/\d+)\]", r"| epoch \1 | batch \2 | "),  # `[0/25][100/1000]`
        ("/", r"\[(\d+)\]\s*\[\s*(\d+/\d+)\]", r" \1 | batch \2 | "),  # `Epoch: [0][10/5005]`
        # `Epoch: 1 [640/28539 (2%)]`, but not `Step [640/28539]`
        ("/", r"((?:^|[^a-zA-Z\s:=]|\s\s)\s*)\[\s*(\d+/\d+)( \(\d+%\))?\]", r"\1 | batch \2 | "),
        ("/", r"(?:\||^)\s*(\d+/\d+) (\[|━)", r"| itr \1 | "),  # a progress bar
        ("━", r"[━╸╺]\s+(\d+/\d+)\s", r"| itr \1 | "),  # that of rich
        ("metric,", r"\bcur metric,", "valid | "),  # PaddleOCR
        ("metric,", r"\bbest metric,.*", " "),
        ("Current_acc", r"\bCurrent_accuracy\b", "valid | accuracy"),  # EasyOCR
        ("Saving dict", r"\bSaving dict for global step", "valid | global step"),  # TensorFlow's estimators
    )
)
_LEVEL = "(?:DEBUG|INFO|WARNING|ERROR)"
_SOURCE = re.compile(  # what logged a line: `train:main:120 - `, `[train][INFO]`, `train - INFO - `, `INFO:train:`
    rf"(?<![\w.-])([a-z]\w*)(?::[\w.<>]+:\d+ - |\]\s?\[{_LEVEL}\]| - {_LEVEL} - )"
    rf"|\b{_LEVEL}(?:\]\s?\[| - |:)([a-z]\w*)(?:\]| - |:)"
)
_QUALIFIER = re.compile(r"\(([^()\d]*)\)(?=\s*[:=]?\s*$)")  # `PER (avg): `
_TOTAL = re.compile(r"\s*/\s*(\d[\d,]*)(?![\d,]|\s*/)")
_HELD_OUT = re.compile(  # but not `dev-box`
    r"(?<![\w-])(valid(ation|ating)?|val|eval(uation|uating)?|dev|test(ing)?|cv)(?!\w|-(?!clean|other))", re.IGNORECASE
)
_TRAINED_ON = re.compile(r"\b(train(ing)?|train_inner)\b", re.IGNORECASE)
_HEADING = re.compile(r"\W*([A-Za-z]+(?: [A-Za-z]+){,2}):\s*")  # `Validation:`, with its numbers on the lines below
_SECTION = re.compile(r"\s*[\W_]{3,}([A-Za-z]+(?: [A-Za-z]+){,2})[\W_]{3,}")  # `__TESTING DATA__`
_FILLERS = ("reached", "is", "of", "was", "at", "to", "now", "value")
_PLAIN = (
    "average", "avg", "mean", "current", "running", "the", "and", "final", "last", "at", "for", "batch", "step", "info",
    "debug", "epoch", "train", "training",
)  # fmt: skip
_OF_ANOTHER = ("best", "min", "lowest", "previous", "target")
_MOST_WORDS = 4
_LONGEST = 20_000  # characters of a line with readings
_MOST_BATCHES = 10**12  # of an epoch


def read(log: Log) -> list[Recording] | None:
    """Read a text file with a line that has a known name. Lines of other kinds are ignored."""
    rows, lines = RowCollector(), _Lines()

    def read_line(line: str) -> None:
        row = lines.read(line)
        if row is not None:
            rows.add_row(row)

    read_lines(log, read_line)
    return rows.recordings(log.path.name) or None


class _Before(NamedTuple):
    """What stands before a number on a line.

    Attributes:
        named: The known name next to the number, as `_name` returns it.
        part: The part of the data that the words name, if they do: what follows was measured there.
        percent: Whether it says that the number is in percent.
        empty: Whether there is no word, so that the number may be a batch without a name: `| 100/600 |`.
        alone: Whether there is nothing but the name.
    """

    named: tuple[Known, str, bool] | None
    part: str
    percent: bool
    empty: bool
    alone: bool


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
    total: int | None = None
    alone: bool = False


class _Lines:
    """Reads the lines of a log, one after the other."""

    def __init__(self) -> None:
        self._read_before = lru_cache(maxsize=4096)(_read_before)  # the same words stand on many lines
        self._steps = Steps()
        self._part = ""  # the part of the data that a heading names
        self._section = ""  # and that of all lines up to another section
        self._by_source = False  # whether what logged a line says on which part of the data
        self._shown = dict[str, float]()  # the validations that a progress bar shows until there are others

    def read(self, line: str) -> Row | None:
        """The row of a line. None if it has no known name."""
        if len(line) > _LONGEST:
            return None
        line = line.rpartition("\b")[2]  # what comes before was written over
        line = self._without_source(line)
        for needed, pattern, words in _SPELLINGS:
            if needed in line:
                line = pattern.sub(words, line)
        if heading := _HEADING.fullmatch(line):
            self._part = part_in(heading[1]) or self._part
        elif section := _SECTION.fullmatch(line):
            self._section = part_in(section[1])
        found = _find(line, self._read_before)
        if found.keys() & {"step", "epoch"}:
            self._part = ""
        if "val" in (self._part, self._section):
            found = _find(line, self._read_before, held_out=True)
        epoch, step = found.pop("epoch", None), found.pop("step", None)
        if step and not is_count(step.value):
            step = None
        if epoch and not abs(epoch.value) < MOST_EPOCHS:
            epoch = None
        if not found:
            see_names(number.title for number in (epoch, step) if number)
            self._count(epoch, step)
            return None
        return self._row(epoch, step, {number.title: number.value for number in found.values()})

    def _without_source(self, line: str) -> str:
        """The line without the script or logger `train`: it logs validations, too, unless they have one of theirs."""
        if not (match := _SOURCE.search(line)) or not (part := part_in(match[1] or match[2])):
            return line
        self._by_source |= part == "val"
        return line if self._by_source else line.replace(match[0], "| ", 1)

    def _count(self, epoch: _Number | None, step: _Number | None) -> None:
        """Follow a line that only counts, such as `Epoch 1/50`."""
        if epoch and epoch.alone and epoch.title.lower() == "epoch":
            self._steps.see_epoch(epoch.value)
        if step and step.alone:
            self._steps.whole(int(step.value), total=step.total)

    def _row(self, epoch: _Number | None, step: _Number | None, values: dict[str, float]) -> Row | None:
        if epoch:
            self._steps.see_epoch(epoch.value)
        if step and is_validation(values) and (self._section == "val" or self._counts_own(step, epoch)):
            step = None
        if step:
            return self._row_at(step, values)
        if self._steps.last is not None:
            values = self._steps.new_values(values)
            return (self._steps.last, values) if values else None
        if self._steps.epoch is not None:
            values["epoch"] = self._steps.epoch
        return None, values

    def _counts_own(self, step: _Number, epoch: _Number | None) -> bool:
        """Whether a validation's step counts its batches, or all steps where the training's count those of an epoch."""
        last, whole = self._steps.last_in_epoch, self._steps.last
        if last is None or whole is None:
            return False
        counts_all = last < whole <= step.value
        return counts_all or step.total is not None or (epoch is not None and step.value <= last)

    def _row_at(self, step: _Number, values: dict[str, float]) -> Row | None:
        if step.title != _BAR:
            return self._steps.whole(int(step.value), values, step.total), values
        if not step.value:
            return None  # what an empty bar shows is from before
        whole = self._steps.whole(int(step.value), values, step.total)
        if step.value == step.total:
            self._steps.end_epoch()
        shown = {title: value for title, value in values.items() if is_validation([title])}
        values = {title: n for title, n in values.items() if title not in shown or self._shown.get(title) != n}
        self._shown |= shown
        return whole, values


def _find(line: str, read_before: Callable[[str], _Before], *, held_out: bool = False) -> dict[str, _Number]:
    """The numbers on a line that have a known name: the best one for each signal."""
    found: dict[str, _Number] = {}
    part = "val" if held_out else ""
    loss_of = ""  # the part of the last loss: of `Test loss: 0.9, accuracy: 0.8`
    end = 0
    for match in _NUMBER.finditer(line):
        before, end = read_before(line[end : match.start()]), match.end()
        part = before.part or part
        total = _TOTAL.match(line, end)
        if before.named:
            own = part or (loss_of if before.named[0].signal == "accuracy" else "")
            number = _measured(before.named, match[1], own, percent=bool(match[2]) or before.percent)
        elif before.empty:
            number = _Number(Known("step", (0,), ""), (1,), "", _value(match[1], "step"))
        else:
            continue
        if number and number.name.signal in ("loss", "val_loss"):
            loss_of = number.name.part
        if number and total and number.name.signal == "accuracy":  # `9900/10000`
            number = number._replace(value=number.value / max(float(total[1].replace(",", "")), 1))
        if number and (number.title or total) and number.rank < _rank(found, number):
            found[number.name.signal] = number._replace(
                title=number.title or _UNNAMED,
                total=min(int(total[1].replace(",", "")), _MOST_BATCHES) if total else None,
                alone=before.alone and not re.search(r"\w", line[total.end() if total else end :]),
            )
    return found


def _read_before(text: str) -> _Before:
    """What stands before a number."""
    empty = text.strip()[-1:] not in ("(", "/") and not _DELIMITERS.sub("", text).strip()
    qualifier = _QUALIFIER.search(text)
    if qualifier:
        text = text[: qualifier.start()]
    phrases = [own for phrase in _DELIMITERS.split(text) if (own := _without_fillers(phrase))]
    named = _name(phrases[-1]) if phrases else None
    alone = named is not None and phrases == [named[1]]
    part = ""
    if named and named[0].signal not in ("step", "epoch"):  # what is left names a part, too: `CV info lr`
        phrases[-1] = phrases[-1].removesuffix(named[1])
    for phrase in phrases:
        part = _part_after(phrase, part)
    part = (part_in(qualifier[1]) if qualifier else "") or part
    percent = qualifier is not None and "%" in qualifier[1]
    return _Before(named, part, percent, empty, alone)


def _rank(found: dict[str, _Number], number: _Number) -> tuple[int, ...]:
    """The rank of the number that has been found for the same signal."""
    other = found.get(number.name.signal)
    return other.rank if other else (2,)


def _part_after(phrase: str, part: str) -> str:
    """The part of the data of what follows a phrase."""
    if "." in phrase or "time" in phrase:  # a file, or `val time`
        return part
    if _HELD_OUT.search(phrase):
        return "val"
    return "train" if _TRAINED_ON.search(phrase) else part


def _measured(named: tuple[Known, str, bool], text: str, part: str, *, percent: bool) -> _Number | None:
    """The number with that name; None if it is not read on this part of the data."""
    name, title, unsure = named
    if part == "val" and not name.part:
        if name.signal in ("loss", "accuracy"):
            title = f"val_{title}"
            name = find_name(title) or name
        elif name.signal in TRAINING:
            return None
    elif part == "train" and name.signal in ("per", "accuracy") and not name.part:
        return None
    title = f"{title} %" if percent and name.signal in ("per", "accuracy") else title
    return _Number(name, (int(unsure), *name.rank), title, _value(text, name.signal))


def _without_fillers(phrase: str) -> str:
    words = phrase.strip(" /%*#>.-").split()
    while words and words[-1].lower() in _FILLERS:
        words.pop()
    return " ".join(words)


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

"""What TensorBoard's page exports for one chart, as CSV: `Wall time,Step,Value`.

What was measured stands at most in the name of the file: `run-RUN-tag-TAG.csv`, or what people make of it, such as
`run1_train_loss.csv`.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from heapq import merge
from operator import itemgetter

from stability.core.text import first_of
from stability.diagnosis.readers.columns import Row, read_row
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.names import Known, find_name, part_in
from stability.diagnosis.readers.recording import Recording, RowCollector, parse_lines

_HEADER = ("wall time", "step", "value")
_EXPORTED = re.compile(r"run-(.*)-tag-(.*)")
_COPY = re.compile(r"\s*(\(\d+\))$")  # as browsers name a second file of the same name
_SEPARATORS = "_-. "
_BETWEEN = re.compile(rf"[{re.escape(_SEPARATORS)}]+")
_EVERY = re.compile(
    r"(loss|[wct]er|norm|rate)[_\-. ]per[_\-. ](epoch|step|iter|iteration|batch|update)$", re.IGNORECASE
)
_UNNAMED = "The file does not name its metric. Its values were taken for the training loss."


def kind(log: Log) -> str:
    """Return a text that is the same for all charts; nothing if the file is none."""
    return "TensorBoard" if _cells(log.first.lower()) == _HEADER else ""


def read(log: Log) -> list[Recording] | None:
    """Read a file with that header."""
    return read_charts([log]) if kind(log) else None


def read_charts(logs: Sequence[Log]) -> list[Recording]:
    """Read the charts in one folder. Those whose names begin with the same run are one training.

    A chart that does not name its metric is taken for a training loss only if no other contains a training.
    """
    runs = dict[str, list[tuple[Log, str]]]()
    unnamed = list[Log]()
    for log in logs:
        run, title = _run_and_metric(log.path.stem)
        if title:
            runs.setdefault(run, []).append((log, title))
        else:
            unnamed.append(log)
    left_out = first_of([log.path.name for log in unnamed], 4)
    notes = [f"Charts whose names do not end in a metric that is known were left out: {left_out}."] if unnamed else []
    names = {run: (run or "charts") if len(logs) > 1 else logs[0].path.name for run in runs}
    found = [recording for run, charts in runs.items() for recording in _read_run(names[run], charts, notes)]
    return found or _read_unnamed(unnamed)


def _run_and_metric(stem: str) -> tuple[str, str]:
    """The run and the metric in the name of a file. The metric is the longest end that is known; else empty."""
    if find_name("value"):  # the user explains it
        return stem, "value"
    name, *copy = _COPY.split(stem)
    exported = _EXPORTED.fullmatch(name)
    run, name = exported.groups() if exported else ("", name)
    name = _EVERY.sub(r"\1", name)  # this `per` is no error rate
    for begin in (0, *(gap.end() for gap in _BETWEEN.finditer(name))):
        before, title = name[:begin].rstrip(_SEPARATORS), name[begin:]
        known = _find_metric(title)
        if known is None:
            continue
        if exported and before:  # the rest of the tag, and not of the run
            title = f"{before}/{title}"
        else:
            run = run or before
        # Runs of training and validation are often named apart, as `asr_train` and `asr_valid`, or in Keras
        # `run-RUN_validation-tag-epoch_loss`. And in `train_cer` only `cer` is a known name. This word belongs to the
        # metric, and not to the run.
        near = _BETWEEN.split(run)[-1]
        if part_in(near):
            run = run.removesuffix(near).rstrip(_SEPARATORS)
            if not known.part:
                title = f"{near}/{title}"
        return " ".join([run, *copy]).strip(), title
    return "", ""


def _find_metric(title: str) -> Known | None:
    known = find_name(title)
    return known if known and known.signal not in ("step", "epoch") else None


def _read_run(name: str, charts: Sequence[tuple[Log, str]], notes: Sequence[str]) -> list[Recording]:
    """Read the charts of a run, each with its metric. After a restart the steps begin again: rows are in time order."""
    rows, own = RowCollector(), [*notes]
    for _, row in merge(*(_rows(log, title, own) for log, title in charts), key=itemgetter(0)):
        rows.add_row(row)
    return rows.recordings(name, own)


def _read_unnamed(logs: Sequence[Log]) -> list[Recording]:
    """Read charts whose names do not end in a metric: they may begin with one. Else it is taken for the loss."""
    runs = dict[str, list[tuple[Log, str]]]()
    notes = dict[str, list[str]]()
    for log in logs:
        run, title = log.path.name, ""
        for gap in _BETWEEN.finditer(log.path.stem):
            if _find_metric(begin := log.path.stem[: gap.start()]):
                run, title = log.path.stem[gap.end() :], begin
        runs.setdefault(run, []).append((log, title or "loss"))
        notes[run] = [] if title else [_UNNAMED]
    names = {run: run if len(logs) > 1 else logs[0].path.name for run in runs}
    return [recording for run, charts in runs.items() for recording in _read_run(names[run], charts, notes[run])]


def _rows(log: Log, title: str, notes: list[str]) -> Iterator[tuple[float, Row]]:
    """The rows of a chart, each with its time."""
    time = 0.0

    def read_line(line: str) -> Row | None:
        nonlocal time
        cells = _cells(line)
        if cells == _HEADER or cells == _cells(log.first):
            return None
        if len(cells) != len(_HEADER):
            raise ValueError(f"expected {len(_HEADER)} cells, as in the header, found {len(cells)}")
        with suppress(ValueError):  # a date, say
            time = float(cells[0])
        return read_row(("step", title), cells[1:])

    return ((time, row) for row in parse_lines(log, read_line, notes) if row)


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip().strip('"') for cell in line.strip().split(","))

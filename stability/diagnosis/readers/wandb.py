"""What Weights & Biases exports from a chart as CSV: several runs in columns, `RUN - METRIC`, also with `__MIN`."""

from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import chain
from operator import itemgetter

from stability.core.errors import StabilityError
from stability.diagnosis.readers.columns import Row, read_row
from stability.diagnosis.readers.delimited import split_commas
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.names import find_columns, find_name
from stability.diagnosis.readers.recording import Recording, RowCollector, merge_collectors, parse_lines

_TABLES_OF_RUNS = ({"name", "state", "created"}, {"run id", "start time", "duration"})  # of W&B and of MLflow
_RANGES = ("__MIN", "__MAX")


def kind(log: Log) -> str:
    """Return the name of the axis of a chart; nothing if the file is none, or its rows are not numbered."""
    titles = split_commas(log.first)
    axis = _axis(titles)
    return titles[axis[1]].strip() if axis and _metrics(titles) else ""


def read(log: Log) -> list[Recording] | None:
    """Read a file whose header names a metric of a run.

    Raises:
        StabilityError: The file is a table of runs.
    """
    titles = split_commas(log.first)
    if any(table <= {title.lower() for title in titles} for table in _TABLES_OF_RUNS):
        raise StabilityError(
            f"{log.path} is a table of runs, with a row per run. Export the history of a run, or a chart."
        )
    return read_charts([log]) if _metrics(titles) else None


def read_charts(logs: Sequence[Log]) -> list[Recording]:
    """Read the charts in one folder that have the same axis. What they say of a run is one training.

    But if two of them have the same metric of a run, they are of other runs that have the same names.
    """
    groups = list[dict[tuple[str, str], Log]]()
    for log in logs:
        own = dict.fromkeys(_metrics(split_commas(log.first)).values(), log)
        group = next((group for group in groups if group.keys().isdisjoint(own)), None)
        if group is None:
            groups.append(own)
        else:
            group |= own
    recordings = list[Recording]()
    for group in groups:
        notes, runs = list[str](), dict[str, RowCollector]()
        for _, run, row in merge(*(_rows(log, notes) for log in dict.fromkeys(group.values())), key=itemgetter(0)):
            runs.setdefault(run, RowCollector()).add_row(row)
        if len(logs) == 1:
            return merge_collectors(logs[0].path.name, runs, notes)
        recordings += [recording for run, rows in runs.items() for recording in rows.recordings(run, notes)]
    return recordings


def _metrics(titles: Sequence[str]) -> dict[int, tuple[str, str]]:
    """The columns that hold a metric that is known, each with its run and its metric."""
    parts = {index: title.rpartition(" - ") for index, title in enumerate(titles) if not title.endswith(_RANGES)}
    return {index: (run, metric) for index, (run, dash, metric) in parts.items() if dash and find_name(metric)}


def _axis(titles: Sequence[str]) -> tuple[str, int] | None:
    """What the rows of a chart count, steps or epochs, and the column that says it."""
    found = find_columns(tuple("" if " - " in title else title for title in titles))
    return next(((name, found[name]) for name in ("step", "epoch") if name in found), None)


def _rows(log: Log, notes: list[str]) -> Iterator[tuple[float, str, Row]]:
    """The rows of the runs in a chart, each with its place on the axis and its run."""
    titles = split_commas(log.first)
    places = dict[str, list[int]]()
    names = dict[str, list[str]]()
    for index, (run, metric) in _metrics(titles).items():
        places.setdefault(run, []).append(index)
        names.setdefault(run, []).append(metric)
    if axis := _axis(titles):
        places = {run: [axis[1], *own] for run, own in places.items()}
        names = {run: [axis[0], *own] for run, own in names.items()}

    def read_line(line: str) -> list[tuple[float, str, Row]]:
        cells = split_commas(line)
        if cells == titles:
            return []
        if len(cells) != len(titles):
            raise ValueError(f"expected {len(titles)} cells, as in the header, found {len(cells)}")
        rows = {run: read_row(tuple(names[run]), [cells[index] for index in own]) for run, own in places.items()}
        return [(_place(row), run, row) for run, row in rows.items()]

    return chain.from_iterable(parse_lines(log, read_line, notes))


def _place(row: Row) -> float:
    step, values = row
    return values.get("epoch", 0.0) if step is None else step

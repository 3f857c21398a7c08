"""What Weights & Biases exports from a chart as CSV: several runs in columns, `RUN - METRIC`, also with `__MIN`."""

from stability.core.errors import StabilityError
from stability.diagnosis.readers.columns import read_row
from stability.diagnosis.readers.delimited import split_commas
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.names import find_columns, find_name
from stability.diagnosis.readers.recording import Recording, RowCollector, merge_collectors, read_lines

_TABLES_OF_RUNS = ({"name", "state", "created"}, {"run id", "start time", "duration"})  # of W&B and of MLflow
_RANGES = ("__MIN", "__MAX")


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
    runs: dict[str, list[int]] = {}
    for index, title in enumerate(titles):
        run, separator, metric = title.rpartition(" - ")
        if separator and not title.endswith(_RANGES) and find_name(metric):
            runs.setdefault(run, []).append(index)
    if not runs:
        return None
    steps = tuple(title.rpartition(" - ")[2] if " - " not in title else "" for title in titles)
    found = find_columns(steps)
    axis, step = next(((name, found[name]) for name in ("step", "epoch") if name in found), ("", 0))
    collectors = {run: RowCollector() for run in runs}
    names = {run: tuple(titles[index].rpartition(" - ")[2] for index in places) for run, places in runs.items()}

    def read_line(line: str) -> None:
        cells = split_commas(line)
        if cells == titles:
            return
        if len(cells) != len(titles):
            raise ValueError(f"expected {len(titles)} cells, as in the header, found {len(cells)}")
        for run, places in runs.items():
            own, values = names[run], [cells[index] for index in places]
            if axis:
                own, values = (axis, *own), [cells[step], *values]
            collectors[run].add_row(read_row(own, values))

    notes = read_lines(log, read_line)
    return merge_collectors(log.path.name, collectors, notes)

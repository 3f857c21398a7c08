"""The histories beside a table of runs that W&B has exported: a file for each run, or charts with a column for each.

A run's file has its name or its id: `frosty-tree-4.csv`, of `run.history().to_csv(...)`, or JSON. A chart has columns
such as `frosty-tree-4 - train/loss`; of several charts, all metrics of a run are put together.
"""

import csv
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stability.core.errors import StabilityError
from stability.core.files import REPORT
from stability.diagnosis.readers import Recording, read_metrics
from stability.diagnosis.readers.names import find_columns, naming
from stability.sources.task import read_log

_KINDS = (".csv", ".json", ".jsonl", ".tsv")
_BETWEEN = " - "  # the name of a run and a metric
_RANGES = ("__MIN", "__MAX")

Points = list[tuple[str, int, float]]  # metric, step and value


@dataclass(frozen=True)
class Histories:
    """What was exported beside a table of runs.

    Attributes:
        table: The table.
        files: {name or id of a run: its file}.
        charts: {name of a run: its points in all charts}.
        metrics: The names of what was measured, as far as charts and the header of a file say it.
    """

    table: Path
    files: dict[str, Path] = field(default_factory=dict)
    charts: dict[str, Points] = field(default_factory=lambda: defaultdict(list))
    metrics: set[str] = field(default_factory=set)

    def reader(self, name: str, identity: str, names: Mapping[str, str]) -> Callable[[], Recording]:
        """Return what reads the history of a run.

        Args:
            name: Its name.
            identity: Its id; its name again if that is not known.
            names: What the log calls a signal, as in `read_runs`.
        """
        if path := self.files.get(identity) or self.files.get(name):
            return partial(read_log, path, names)
        return partial(_read_points, self.table, self.charts.get(name, []), names)


def find(table: Path) -> Histories:
    """Find what was exported beside a table of runs.

    Raises:
        StabilityError: A chart cannot be read.
    """
    found = Histories(table)
    for path in sorted(table.parent.rglob("*")):
        inside = path.relative_to(table.parent).parts
        if path.suffix not in _KINDS or path == table or inside[0].startswith(REPORT) or not path.is_file():
            continue
        titles = _titles(path)
        if any(_BETWEEN in title for title in titles):
            _add_chart(found, path)
        else:
            stem = path.stem.replace("history", "").strip("_-. ")
            found.files[stem or path.parent.name] = path
            found.metrics.update(titles)
    found.metrics.difference_update(("lr", "learning_rate"))  # also the name of a setting
    return found


def _titles(path: Path) -> Sequence[str]:
    if path.suffix != ".csv":
        return []
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            return next(csv.reader(file), [])
    except (OSError, csv.Error):
        return []


def _add_chart(found: Histories, path: Path) -> None:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file)
        titles = next(reader)
        places = [
            (place, title.rpartition(_BETWEEN)[0], title.rpartition(_BETWEEN)[2])
            for place, title in enumerate(titles)
            if _BETWEEN in title and not title.endswith(_RANGES)
        ]
        step = find_columns(tuple(title if _BETWEEN not in title else "" for title in titles)).get("step")
        if step is None:
            raise StabilityError(f"{path} is a chart without steps: choose Step as its x axis, and export it again.")
        for cells in reader:
            try:
                at = int(float(cells[step]))
                for place, run, metric in places:
                    if cells[place]:
                        found.charts[run].append((metric, at, float(cells[place])))
            except (ValueError, IndexError):
                raise StabilityError(f"{path}, line {reader.line_num}: expected a number in each cell.") from None
    found.metrics.update(metric for _, _, metric in places)


def _read_points(table: Path, points: Points, names: Mapping[str, str]) -> Recording:
    if not points:
        raise StabilityError(
            f"no history of it was exported: put the CSV of run.history(), or charts as CSV, beside {table.name}"
        )
    with naming(names):
        return read_metrics("it", sorted(points, key=lambda point: point[1]))

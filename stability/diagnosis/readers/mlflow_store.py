"""MLflow's file store: `mlruns/EXPERIMENT/RUN/metrics/NAME`, with a line `TIME VALUE STEP` for each value."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

from stability.diagnosis.readers.columns import read_step
from stability.diagnosis.readers.log import Log
from stability.diagnosis.readers.metrics import read_metrics
from stability.diagnosis.readers.recording import Recording, parse_lines

_METRICS, _META, _TAG = "metrics", "meta.yaml", Path("tags", "mlflow.runName")
_NAME = re.compile(r"^run_name: *['\"]?(.*?)['\"]? *$", re.MULTILINE)


def group_by_run(files: Sequence[Path]) -> dict[Path, list[Path]]:
    """Group the files with metrics by the folder of their run. A name such as `val/loss` is a path below `metrics`."""
    folders = {file.parent for file in files if file.name == _META}
    runs = dict[Path, list[Path]]()
    for file in files:
        run = next((above.parent for above in file.parents if above.name == _METRICS and above.parent in folders), None)
        if run:
            runs.setdefault(run, []).append(file)
    return runs


def read(run: Path, files: Sequence[Path], name: str, progress: Callable[[int, int], None]) -> list[Recording]:
    """Read the metrics of a run, in the order of time. The run's own name comes before the beginning of its id.

    Raises:
        StabilityError: None of the metrics is known, or a file is damaged.
        OSError: A file cannot be read.
    """
    points, notes = list[tuple[int, str, int, float]](), list[str]()
    for file in files:
        if file.stat().st_size:
            metric = file.relative_to(run / _METRICS).as_posix()
            with Log(file, progress) as log:
                points += ((time, metric, step, value) for time, value, step in parse_lines(log, _read_line, notes))
    points.sort(key=itemgetter(0))
    own = _own_name(run)
    recording = read_metrics(f"{own} ({run.name[:8]})" if own else name, (point[1:] for point in points))
    return [replace(recording, notes=(*recording.notes, *notes))]


def _own_name(run: Path) -> str:
    """The name that a run has on MLflow's page."""
    if (run / _TAG).exists():
        return (run / _TAG).read_text(errors="replace").strip()
    found = _NAME.search((run / _META).read_text(errors="replace"))
    return found[1] if found else ""


def _read_line(line: str) -> tuple[int, float, int]:
    """The time, the value and the step. Before MLflow 1.0 there was no step."""
    cells = line.split()
    if len(cells) < 2:
        raise ValueError("expected a time, a value and a step")
    return int(cells[0]), float(cells[1]), read_step(float(cells[2])) or 0 if len(cells) > 2 else 0

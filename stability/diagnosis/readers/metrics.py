"""Reads a training from the metrics of an experiment tracker such as MLflow: each value has a name and a step."""

from collections.abc import Iterable
from dataclasses import replace

from stability.core.errors import StabilityError
from stability.diagnosis.readers.columns import find_name
from stability.diagnosis.readers.recording import Recording, RowCollector, last_of


def read_metrics(name: str, history: Iterable[tuple[str, int, float]]) -> Recording:
    """Read a training from the metrics of a run.

    Args:
        name: The run's name.
        history: (metric, step, value) in the order in which they were logged. Metrics that are not known are ignored.

    Raises:
        StabilityError: None of the metrics is known as a training loss or gradient norm.
    """
    rows = RowCollector()
    for metric, step, value in history:
        if (known := find_name(metric)) is not None and known.signal not in ("step", "epoch"):
            rows.add(step, {metric: value})
    runs = rows.recordings(name)
    if not runs:
        raise StabilityError(f"{name} has no metric that is known as a training loss or gradient norm.")
    return replace(last_of(runs), name=name)

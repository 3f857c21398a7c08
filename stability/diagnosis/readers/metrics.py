"""Reads a training from the metrics of an experiment tracker such as MLflow: each value has a name and a step."""

from collections.abc import Iterable

from stability.diagnosis.readers.columns import find_columns
from stability.diagnosis.readers.recording import Recording, RowCollector


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
        for known in find_columns((metric,)):
            if known != "step":
                rows.add(step, {known: value})
    return rows.recording(name, f"{name} has no metric that is known as a training loss or gradient norm.")

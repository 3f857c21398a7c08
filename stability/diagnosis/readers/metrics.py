"""Reads a training from the metrics of an experiment tracker such as MLflow: each value has a name and a step."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from stability.core.errors import StabilityError
from stability.core.text import first_of
from stability.diagnosis.readers.names import find_name
from stability.diagnosis.readers.recording import Recording, RowCollector, last_of
from stability.diagnosis.signals import SIGNALS
from stability.diagnosis.table import Table

_OURS = {"loss", "frame_information", "epsilon_dominance"}  # together they are in no log but that of our trials
_PARTS, _PARTS_IN_MLFLOW = "grad_norm.", "grad_norm/"
_VALIDATION = "validation/"

_History = Sequence[tuple[str, int, float]]


def read_metrics(name: str, history: Iterable[tuple[str, int, float]]) -> Recording:
    """Read a training from the metrics of a run. Of our own trials all signals are read.

    Args:
        name: The run's name.
        history: (metric, step, value) in the order in which they were logged. Metrics that are not known are ignored.

    Raises:
        StabilityError: None of the metrics is known as a training loss or gradient norm.
    """
    history = [*history]
    if {metric for metric, _, _ in history} >= _OURS:
        return _read_trial(name, history)
    rows = RowCollector()
    for metric, step, value in history:
        if (known := find_name(metric)) is not None and known.signal not in ("step", "epoch"):
            rows.add(step, {metric: value})
    runs = rows.recordings(name)
    if not runs:
        metrics = [*dict.fromkeys(metric for metric, _, _ in history)]
        raise StabilityError(
            f"{name} has no metric that is known as a training loss or gradient norm, but {first_of(metrics, 10)}. "
            f"Explain them with --map, such as --map loss={metrics[0]}."
            if metrics
            else f"{name} has logged no metric."
        )
    return replace(last_of(runs), name=name)


def _read_trial(name: str, history: _History) -> Recording:
    history = [(metric.replace(_PARTS_IN_MLFLOW, _PARTS), step, value) for metric, step, value in history]
    signals = [
        (metric, step, value) for metric, step, value in history if metric in SIGNALS or metric.startswith(_PARTS)
    ]
    validation = [(m.removeprefix(_VALIDATION), step, value) for m, step, value in history if m.startswith(_VALIDATION)]
    return Recording(name, _table(signals), _table(validation))


def _table(history: _History) -> Table:
    """A row per step. Of several values of a metric at a step, the last one counts."""
    names = tuple(dict.fromkeys(metric for metric, _, _ in history))
    steps = np.unique(np.array([step for _, step, _ in history], np.int64))
    values = np.full((len(steps), len(names)), np.nan, np.float32)
    measured = np.zeros(values.shape, bool)
    columns = {metric: column for column, metric in enumerate(names)}
    for metric, step, value in history:
        row = int(np.searchsorted(steps, step))
        values[row, columns[metric]], measured[row, columns[metric]] = value, True
    return Table(names, steps, values, measured)

"""The labelled trainings of the field corpus, as a log has them: readings at a distance, and some of the signals."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from experiments.detection.corpus import Trace, unpack
from experiments.detection.field.corpus import packed
from experiments.detection.field.labels import field_label, in_view, knows_nothing
from experiments.detection.field.recipe import Half
from experiments.detection.labels import Label
from stability.diagnosis.table import Table

Signals = Literal["all", "log", "bare", "loss"]
SIGNALS: tuple[Signals, ...] = get_args(Signals)
DISTANCES = (1, 10, 100, 200)

_TRAINING: dict[Signals, tuple[str, ...]] = {"log": ("loss", "lr", "grad_norm"), "bare": ("loss",), "loss": ("loss",)}
_VALIDATE_EVERY = 100


class FieldCase(NamedTuple):
    """A training as a log has it, and what is right of it."""

    trace: Trace
    label: Label


def field_cases(half: Half, distance: int = 1, signals: Signals = "all") -> Iterator[FieldCase]:
    """Yield the labelled trainings of a half, as a log has them. Of a fault, a log must have two readings.

    Args:
        half: The half of the corpus.
        distance: The number of steps between two readings.
        signals: `all` that a Monitor measures; a `log` with loss, learning rate, gradient norm, validation loss and
            error rate; a `bare` one without rate and norm; or only the `loss`, of training and of validation.
    """
    for trace in unpack(packed(half)):
        label = field_label(trace.facts)
        if label is None:
            continue
        seen = view(trace, distance, signals)
        right = _visible(label, seen, _grown_at(trace, label))
        if right is not None:
            names = {*seen.signals.names, *(("per",) if "per" in seen.validation.names else ())}
            right = in_view(right, names, distance)
        if right is not None:
            yield FieldCase(seen, right)


def view(trace: Trace, distance: int, signals: Signals) -> Trace:
    """Return a training as a log has it. Half of the logs have the mean loss since their last reading."""
    table, validation = trace.signals, trace.validation
    values = table.values.copy()
    means = distance > 1 and trace.facts["recipe"]["seed"] % 2 == 1
    kept = table.steps % distance == 0
    if means:
        place = table.names.index("loss")
        for row in np.flatnonzero(kept):
            values[row, place] = values[max(0, row - distance + 1) : row + 1, place].mean()
        kept &= table.steps > 0
    columns = [i for i, name in enumerate(table.names) if signals == "all" or name in _TRAINING[signals]]
    ends = (validation.steps + 1) % max(distance, _VALIDATE_EVERY) == 0
    ends[-1:] = True
    wanted = [i for i, name in enumerate(validation.names) if signals != "loss" or name == "loss"]
    return replace(
        trace,
        signals=_part(replace(table, values=values), kept, columns),
        validation=_part(validation, ends, wanted),
    )


def _part(table: Table, rows: NDArray[np.bool_], columns: list[int]) -> Table:
    names = tuple(table.names[i] for i in columns)
    return Table(names, table.steps[rows], table.values[rows][:, columns], table.measured[rows][:, columns])


def _grown_at(trace: Trace, label: Label) -> int | None:
    """The first step since the onset at which the loss is that of an explosion; None if there is none."""
    onset = label.onset or 0
    loss = trace.signals["loss"]
    high = (loss > 2 * knows_nothing(trace.facts)) & (trace.signals.steps >= onset)
    high &= (trace.signals.steps > 0) | (onset > 0)
    return int(np.argmax(high)) if high.any() else None


def _visible(label: Label, seen: Trace, grown_at: int | None) -> Label | None:
    """Return what is right of a log: None if the fault has left too little in it."""
    facts, steps = seen.facts, seen.signals.steps
    if not len(steps):
        return None
    if label.healthy:
        return label
    since, loss = label.onset or 0, seen.signals["loss"]
    if "negative_loss" in label.causes:
        return label if (loss < 0).any() else None
    if facts["failed_at"] is not None and not (steps >= facts["failed_at"]).any():
        return None if "exploded" not in label.outcomes else _exploded(label, facts, seen, grown_at)
    if "exploded" in label.outcomes:
        return _exploded(label, facts, seen, grown_at)
    mismatched = label.causes & {"metric", "labels", "train_eval"} and "bad_data" in label.outcomes
    if mismatched and "per" not in seen.validation.names:
        return None
    enough = (steps >= since).sum() >= min(2, facts["steps"]) or facts["failed_at"] is not None
    validated = (seen.validation.steps > since).any() or facts["failed_at"] is not None
    needs_validation = label.outcomes & {"degraded"} or mismatched
    if facts["recipe"]["fault"] == "short":
        return label
    return label if enough and (validated or not needs_validation) else None


def _exploded(label: Label, facts: dict[str, Any], seen: Trace, grown_at: int | None) -> Label | None:
    """What is right of an explosion: one that fell between two readings has left only what came after it."""
    steps, loss, failed_at = seen.signals.steps, seen.signals["loss"], facts["failed_at"]
    end = np.inf if failed_at is None else failed_at
    since = (label.onset or 0) if grown_at is None else grown_at
    grown = (steps >= since) & (steps < end)
    if failed_at is not None and (steps >= failed_at).any():
        if grown.any() and grown_at is not None:
            return label
        also = {"unknown", "no_evidence", "loss", "gradient"}
        return replace(label, outcomes=label.outcomes | {"non_finite"}, causes=label.causes | also)
    if grown.sum() < 2:
        return None
    if facts["recipe"]["onset"] == 0 and not (loss[1:] > 2 * knows_nothing(facts)).any():
        return replace(label, causes=label.causes | {"unknown", "no_evidence", "no_information"})
    return label

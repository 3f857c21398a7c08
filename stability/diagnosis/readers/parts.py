"""A training with two logs, one of the training and one of the validation: `train.csv` and `val.csv`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from stability.diagnosis.readers.names import part_in
from stability.diagnosis.readers.recording import NO_TRAINING_LOSS, Recording
from stability.diagnosis.table import Table

_APART = 2  # validations at regular distances reach half of the training's steps, but for one before its first step


def join_parts(runs: Mapping[Path, Sequence[Recording]]) -> list[Recording]:
    """Join the recordings of two files in a folder if their names differ in the part of the data alone.

    Args:
        runs: The recordings in each file. Only those that are alone in their file are joined.
    """
    parts: dict[tuple[Path, str], dict[str, list[Path]]] = {}
    for file, found in runs.items():
        words = re.split(r"[\s_.-]+", file.name)
        of_parts = [word for word in words if part_in(word)]
        if len(of_parts) == 1 and len(found) == 1:
            rest = "_".join(word for word in words if word not in of_parts)
            parts.setdefault((file.parent, rest), {}).setdefault(part_in(of_parts[0]), []).append(file)
    kept = {file: [*found] for file, found in runs.items()}
    for files in parts.values():
        match files:
            case {"train": [train], "val": [val]} if _belong_together(runs[train][0], runs[val][0]):
                kept[train] = [_join(runs[train][0], kept.pop(val)[0])]
    return [recording for found in kept.values() for recording in found]


def _belong_together(train: Recording, val: Recording) -> bool:
    """Whether one has no validations and the other nothing that only a training has, and their steps are the same.

    If both have an error rate, that in the log of the training is taken to be of training data, and is no validation.
    Steps that end far apart count different things: batches in one file, and validations in the other.
    """
    only_trained = len(train.signals.steps) and {*train.validation.names} <= {"per"} & {*val.validation.names}
    if not only_trained or not {*val.signals.names} <= {"loss"} or train.unit != val.unit:
        return False
    ends = [max(table.steps[-1] for table in (r.signals, r.validation) if len(table.steps)) for r in (train, val)]
    return bool(max(ends) <= _APART * min(ends))


def _join(train: Recording, val: Recording) -> Recording:
    notes = [note for note in (*train.notes, *val.notes) if note != NO_TRAINING_LOSS]
    if len(train.validation.steps):
        notes.append(f"The {train.metric} in {train.name} was left out: that in {val.name} takes its place.")
    return replace(
        train,
        name=f"{train.name}, {val.name}",
        validation=_side_by_side(val.validation, val.signals),  # a file that is all validation calls its loss just that
        metric=val.metric,
        notes=tuple(dict.fromkeys(notes)),
    )


def _side_by_side(one: Table, other: Table) -> Table:
    """All that two tables have measured. Of a column that both have, that of the first is kept."""
    names = tuple(dict.fromkeys((*one.names, *other.names)))
    steps = np.union1d(one.steps, other.steps)
    values = np.full((len(steps), len(names)), np.nan, np.float32)
    measured = np.zeros(values.shape, bool)
    for table in (other, one):
        columns = np.array([names.index(name) for name in table.names], int)
        place = np.ix_(np.searchsorted(steps, table.steps), columns)
        values[place], measured[place] = table.values, table.measured
    return Table(names, steps, values, measured)

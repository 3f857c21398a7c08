"""Judges the recording of a training that a log describes. The texts of the verdict speak of the units of the log."""

import re
from collections.abc import Collection
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from stability.diagnosis.finding import readings
from stability.diagnosis.judge import judge, stopping_verdict
from stability.diagnosis.readers.recording import Recording
from stability.diagnosis.table import Table, read_table
from stability.diagnosis.verdict import Verdict

_HEALTHY = Path(__file__).parent / "healthy.csv"
_STEP = re.compile(r"\bstep(?=s? \d)")  # in a text of the judge


def judge_recording(recording: Recording) -> Verdict:
    """Return the verdict on a training that has ended, or on what its log contains so far."""
    return _in_its_units(
        judge(recording.signals, recording.validation, metric=recording.metric, healthy=_healthy_error_rate(recording)),
        recording,
    )


def doomed(recording: Recording, stop_on: Collection[str]) -> Verdict | None:
    """Return the verdict that ends a training early.

    Args:
        recording: What its log contains so far.
        stop_on: The kinds of findings that end a training.

    Returns:
        The verdict on the first finding of these kinds; None if there is none.
    """
    verdict = stopping_verdict(recording.signals, recording.validation, stop_on, metric=recording.metric)
    return None if verdict is None else _in_its_units(verdict, recording)


@cache
def healthy_runs() -> Table:
    """Return the range of healthy runs of the official trainer: `NAME_low` and `NAME_high` by step."""
    return read_table(_HEALTHY)


def epoch_of(epochs: Table, row: int) -> float:
    """Return the epoch of a row of a log, or of the first row that has an epoch."""
    rows, values = readings(epochs, "epoch")
    return float(values[max(int(np.searchsorted(rows, row, side="right")) - 1, 0)])


def _in_its_units(verdict: Verdict, recording: Recording) -> Verdict:
    """The verdict, whose texts speak of epochs or rows if the steps of the recording are these."""
    evidence = {name: _STEP.sub(recording.unit, v) if isinstance(v, str) else v for name, v in verdict.evidence.items()}
    if recording.epochs is not None and (row := verdict.onset_step) is not None:
        evidence = {f"epoch of row {row}": epoch_of(recording.epochs, row), **evidence}
    return replace(verdict, evidence=evidence, advice=_STEP.sub(recording.unit, verdict.advice))


def _healthy_error_rate(recording: Recording) -> float | None:
    """The error rate of healthy official runs at the last step that is known, if the recording is of such a run."""
    if not recording.official or not len(recording.validation.steps):
        return None
    steps, rates = readings(healthy_runs(), "per_high")
    rates = rates[steps <= recording.validation.steps[-1]]
    return float(rates[-1]) if len(rates) else None

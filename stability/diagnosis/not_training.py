"""Trainings in which nothing is learned at all, because no gradient or no update reaches the parameters."""

import numpy as np

from stability.diagnosis.finding import Finding, Series, finite_readings
from stability.diagnosis.table import Table

_READINGS = 5  # in a row that must be exactly 0, against a chance and against steps that fp16's scaler skips
_ALL = 0.99  # share of the parameters that are in no optimizer, or have no gradient


def not_training(signals: Table, validation: Table) -> Finding | None:
    """Detect a loss, gradients or updates of exactly 0, and parameters that no optimizer changes."""
    found = (
        _no_loss(signals),
        _no_gradient(signals),
        _no_rate(signals),
        _no_update(signals),
        _not_in_optimizer(signals),
    )
    return min((f for f in found if f is not None), key=lambda finding: finding.detected_step, default=None)


def _no_loss(signals: Table) -> Finding | None:
    """A loss of exactly 0 from the start. Later it may be a loss that was learned by heart, and rounded."""
    loss = finite_readings(signals, "loss")
    if len(loss.values) < _READINGS or loss.values[:_READINGS].any():
        return None
    return _finding(
        "zero_loss",
        "loss",
        loss,
        _READINGS - 1,
        "The training loss is exactly 0 from the start. Either something hides what is wrong (zero_infinity, which "
        "sets the loss of every target to 0 that does not fit, or a mask that leaves out all), or the loss is not "
        "computed from the model. Print the loss of one utterance, its frames and its labels.",
    )


def _no_gradient(signals: Table) -> Finding | None:
    advice = (
        "so nothing is learned. Look for a detach(), no_grad() or argmax between the parameters and the loss, for "
        "frozen parameters, and for a loss that is a constant or multiplied by 0."
    )
    missing = finite_readings(signals, "no_gradient")
    rows = np.flatnonzero(missing.values >= _ALL)
    if len(rows):
        return _finding(
            "no_gradient", "no_gradient", missing, int(rows[0]), f"No parameter has a gradient, {advice}", "0"
        )
    norm = finite_readings(signals, "grad_norm")
    row = _last_of_zeros(norm)
    return (
        None if row is None else _finding("no_gradient", "grad_norm", norm, row, f"The gradient is exactly 0, {advice}")
    )


def _no_rate(signals: Table) -> Finding | None:
    rates = finite_readings(signals, "lr")
    row = _last_of_zeros(rates)
    if row is None:
        return None
    return _finding(
        "no_update",
        "lr",
        rates,
        row,
        "The learning rate is 0. Look at the schedule: its length, and when it is stepped.",
    )


def _no_update(signals: Table) -> Finding | None:
    update = finite_readings(signals, "update_ratio")
    row = _last_of_zeros(update)
    if row is None:
        return None
    return _finding(
        "no_update",
        "update_ratio",
        update,
        row,
        "The parameters do not change: updates are exactly 0. Look whether optimizer.step() is called, whether the "
        "optimizer has these parameters, and whether fp16 rounds the updates to 0.",
    )


def _not_in_optimizer(signals: Table) -> Finding | None:
    share = finite_readings(signals, "unoptimized")
    rows = np.flatnonzero(share.values >= _ALL)
    if not len(rows):
        return None
    return _finding(
        "not_in_optimizer",
        "unoptimized",
        share,
        int(rows[0]),
        f"{share.values[rows[0]]:.0%} of the parameters are in no optimizer, so they stay as they are. Make the "
        "optimizer from the parameters of this model, after the model has been moved, wrapped or changed.",
        expected="0",
    )


def _last_of_zeros(series: Series) -> int | None:
    """The row of the reading that completes the first long row of zeros."""
    in_a_row = 0
    for row, value in enumerate(series.values):
        in_a_row = in_a_row + 1 if value == 0 else 0
        if in_a_row == _READINGS:
            return row
    return None


def _finding(
    cause: str, signal: str, series: Series, row: int, advice: str, expected: str = "a number that is not 0"
) -> Finding:
    first = row
    while first and series.values[first - 1] == series.values[row]:
        first -= 1
    return Finding(
        kind="not_training",
        cause=cause,
        onset_step=int(series.steps[first]),
        detected_step=int(series.steps[row]),
        signal=signal,
        value=float(series.values[row]),
        expected=expected,
        advice=advice,
    )

"""Trainings in which nothing is learned at all, because no gradient or no update reaches the parameters."""

from dataclasses import replace

import numpy as np

from stability.diagnosis.finding import Finding, Series, earliest, finite_readings
from stability.diagnosis.table import Table

_READINGS = 5  # in a row that must be exactly 0. A few may be chance, or steps that fp16's scaler skips
_ALL = 0.99  # share of the parameters without a gradient or an optimizer from which on nothing is trained
_NOT_0 = "a number that is not 0"
_NO_LOSS = (
    "The training loss is exactly 0 from the start. Either CTC can align no target, which zero_infinity hides, or a "
    "mask leaves out all frames or labels, or the loss is not computed from the model's output. Print the loss, the "
    "number of frames and the labels of one utterance."
)
_NO_GRADIENT = (
    "so nothing is learned. Look for a detach(), no_grad() or argmax between the parameters and the loss, for frozen "
    "parameters, and for a loss that is a constant or multiplied by 0."
)
_NO_RATE = "The learning rate is 0. Look at the schedule: its length, and where scheduler.step() is called."
_FALLEN = 1e-4  # share of its largest value; updates by a rate below it are rounded away
_FALLEN_RATE = (
    "The parameters do not change: the lr has fallen from {highest:.2g} to {now:.2g}, and the weights round such "
    "updates to 0. Let it fall later: look at the length of the schedule, and whether scheduler.step() is called once "
    "a step or once an epoch, as it expects."
)
_NO_UPDATE = (
    "The parameters do not change: updates are exactly 0. Look whether optimizer.step() is called, whether the "
    "optimizer has these parameters, and whether fp16 rounds the updates to 0."
)
_NOT_IN_OPTIMIZER = (
    "{share:.0%} of the parameters are in no optimizer, so training does not change them. Make the optimizer from the "
    "parameters of this model, after the model has been moved, wrapped or changed."
)


def not_training(signals: Table, validation: Table) -> Finding | None:
    """Detect a loss, gradients or updates of exactly 0, and parameters that no optimizer changes."""
    return earliest(
        (
            _no_loss(signals),
            _no_gradient(signals),
            _zeros(signals, "lr", "no_update", _NO_RATE),
            _no_update(signals),
            _in_all(signals, "unoptimized", "not_in_optimizer", _NOT_IN_OPTIMIZER),
        )
    )


def _no_loss(signals: Table) -> Finding | None:
    """Find a loss of exactly 0 from the start. Later it may be a loss that was memorized, and rounded."""
    loss = finite_readings(signals, "loss")
    if len(loss.values) < _READINGS or loss.values[:_READINGS].any():
        return None
    return _finding("loss", "zero_loss", loss, _READINGS - 1, _NOT_0, _NO_LOSS)


def _no_gradient(signals: Table) -> Finding | None:
    """Find parameters without a gradient, or gradients of exactly 0."""
    found = _in_all(signals, "no_gradient", "no_gradient", f"No parameter has a gradient, {_NO_GRADIENT}")
    if found is not None and finite_readings(signals, "grad_norm").up_to(found.detected_step).any():
        found = None  # the model has gradients: the parameters without one are those of another model
    return found or _zeros(signals, "grad_norm", "no_gradient", f"The gradient is exactly 0, {_NO_GRADIENT}")


def _no_update(signals: Table) -> Finding | None:
    """Find updates of exactly 0. If the rate has fallen far, it is the reason: the weights round such updates away."""
    found = _zeros(signals, "update_ratio", "no_update", _NO_UPDATE)
    if found is None:
        return None
    rates = finite_readings(signals, "lr").up_to(found.onset_step)
    if not len(rates) or rates[-1] >= _FALLEN * rates.max():
        return found
    return replace(found, advice=_FALLEN_RATE.format(highest=rates.max(), now=rates[-1]))


def _zeros(signals: Table, name: str, cause: str, advice: str) -> Finding | None:
    """Find the reading that completes the first long row of zeros."""
    series = finite_readings(signals, name)
    in_a_row = 0
    for row, value in enumerate(series.values):
        in_a_row = in_a_row + 1 if value == 0 else 0
        if in_a_row == _READINGS:
            return _finding(name, cause, series, row, _NOT_0, advice)
    return None


def _in_all(signals: Table, name: str, cause: str, advice: str) -> Finding | None:
    """Find the first reading at which a share of the parameters is nearly all of them."""
    series = finite_readings(signals, name)
    rows = np.flatnonzero(series.values >= _ALL)
    if not len(rows):
        return None
    row = int(rows[0])
    return _finding(name, cause, series, row, "0", advice.format(share=series.values[row]))


def _finding(signal: str, cause: str, series: Series, row: int, expected: str, advice: str) -> Finding:
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

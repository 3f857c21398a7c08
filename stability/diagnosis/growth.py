"""Growth that goes on to the last reading: the beginning of an explosion that a NaN or the end of the log cuts off.

The detector of explosions waits until growth has lasted. Here there is nothing to wait for: what counts is how far the
last readings lie above all that was usual, against the noise of the curve.
"""

import math
from typing import NamedTuple

import numpy as np

from stability.diagnosis.finding import THRESHOLDS, count_at_end, finite_readings, noise_of, running_median
from stability.diagnosis.table import Table

_T = THRESHOLDS["growth"]
_SMOOTH = 5
_FEW, _LEAP = 12, 20.0  # of fewer readings, one that is so many times the best level has grown, whatever the noise
_PAST = 20  # readings of the gradient norm that are its past


class Growth(NamedTuple):
    """Growth up to the last reading of the loss.

    Attributes:
        onset: The step of the first reading that had grown.
        last: The step of the last reading.
        readings: How many readings have grown.
        value: The last reading.
        usual: The best level of the loss before.
        goes_on: Whether it still grows: whether the last fifth is higher than the one before it.
    """

    onset: int
    last: int
    readings: int
    value: float
    usual: float
    goes_on: bool


def growth_until(signals: Table, step: int) -> Growth | None:
    """Find growth of the loss that goes on up to a step.

    Returns:
        The growth; None if the last reading of the loss before or at that step is usual.
    """
    steps, values = finite_readings(signals, "loss")
    positive = values > 0
    steps, values = steps[positive], values[positive]
    end = int(np.searchsorted(steps, step, "right"))
    if end < 2:
        return None
    logs = np.log(values[:end])
    usual = np.minimum.accumulate(running_median(logs, _SMOOTH))
    usual = np.concatenate([usual[:1], usual[:-1]])  # before each reading
    noise = noise_of(logs)
    if end < _FEW:  # then growth itself looks like noise
        noise = min(noise, math.log(_LEAP) / _T["noises"])
    above = logs - usual
    high = above > max(math.log(_T["times"]), _T["noises"] * noise)
    readings = count_at_end(high)
    if not readings or values[end - 1] < _T["near_0"] * values[0]:
        return None
    if readings == 1 and not _is_clear(signals, int(steps[end - 1]), float(above[-1]), noise):
        return None
    onset = end - readings
    rising = max(0.1, 3 * noise)
    while onset > 1 and above[onset - 1] > rising and logs[onset - 1] < logs[onset]:
        onset -= 1
    fifth = -(-readings // 5)
    later, before = logs[end - fifth : end], logs[end - 2 * fifth : end - fifth]
    return Growth(
        onset=int(steps[onset]),
        last=int(steps[end - 1]),
        readings=readings,
        value=float(values[end - 1]),
        usual=float(np.exp(usual[onset])),
        goes_on=bool(len(before) and np.median(later) > np.median(before) + math.log(_T["goes_on"])),
    )


def _is_clear(signals: Table, step: int, above: float, noise: float) -> bool:
    """Whether a single reading shows growth: it is far above the noise, and so is the gradient, if it was measured."""
    norm = finite_readings(signals, "grad_norm")
    own, past = norm.between(step, step), norm.up_to(step - 1)[-_PAST:]
    if len(own) and len(past) and (past > 0).all() and own[0] > 0:
        return bool(np.log(own[0]) - np.median(np.log(past)) > max(math.log(_T["single"]), 3 * noise_of(np.log(past))))
    return above > max(math.log(_T["single"]), 2 * _T["noises"] * noise)

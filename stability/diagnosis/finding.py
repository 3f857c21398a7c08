"""Shared by the detectors: what a finding is, the thresholds, the readings of a signal, and its noise."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stability.diagnosis.table import Table

Outcome = Literal[
    "stable",
    "slow",
    "undecided",
    "degraded",
    "blank_collapse",
    "mode_collapse",
    "not_training",
    "exploded",
    "non_finite",
    "bad_data",
]
Floats = NDArray[np.float64]
Steps = NDArray[np.int64]
_NEAR = 10  # readings by which the distance between two of them is measured

THRESHOLDS: dict[str, dict[str, float]] = tomllib.loads(Path(__file__).with_name("thresholds.toml").read_text())


@dataclass(frozen=True)
class Finding:
    """A finding: the fault that one detector found.

    Attributes:
        kind: The outcome of the training if nothing changes.
        cause: Why, in one word.
        onset_step: The step at which it began.
        detected_step: The step at which the detector had enough evidence. It uses no later step.
        signal: The name of the signal that shows it.
        value: The signal's value at the detected step.
        expected: The value that was expected there, in words.
        advice: What was measured, and what to try.
    """

    kind: Outcome
    cause: str
    onset_step: int
    detected_step: int
    signal: str
    value: float
    expected: str
    advice: str


def earliest(found: Iterable[Finding | None]) -> Finding | None:
    """Return the finding that was detected first; None if there is none."""
    return min((f for f in found if f is not None), key=lambda finding: finding.detected_step, default=None)


class Series(NamedTuple):
    """The readings of one signal that are finite, by step."""

    steps: Steps
    values: Floats

    def up_to(self, step: int) -> Floats:
        """Return the values up to that step, which is included."""
        return self.values[: np.searchsorted(self.steps, step, "right")]

    def between(self, first: int, last: int) -> Floats:
        """Return the values from one step to another, both included."""
        return self.values[np.searchsorted(self.steps, first) : np.searchsorted(self.steps, last, "right")]

    def distance(self, step: int) -> int:
        """Return the usual number of steps between two readings at that time: a log may have one in 200 steps."""
        recent = self.steps[: np.searchsorted(self.steps, step, "right")][-_NEAR:]
        return max(1, int(np.median(np.diff(recent)))) if len(recent) > 1 else 1


def readings(signals: Table, name: str) -> tuple[Steps, NDArray[np.float32]]:
    """Return the steps and values at which a signal was measured: none if the table does not have it."""
    if name not in signals.names:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    measured = signals.measured[:, signals.names.index(name)]
    return signals.steps[measured], signals[name][measured]


def finite_readings(signals: Table, name: str) -> Series:
    """Return the readings of a signal that are finite, in float64. So one NaN does not spoil medians and sums."""
    steps, values = readings(signals, name)
    finite = np.isfinite(values)
    return Series(steps[finite], values[finite].astype(np.float64))


def noise_of(values: Floats) -> float:
    """Return the standard deviation of the noise in a curve, robustly, from first and second differences.

    A curve that falls or rises smoothly has none. Of fewer than four points it is not known, and 0 is returned.
    """
    if len(values) < 4:
        return 0.0
    first, second = np.diff(values), np.diff(values, 2)
    # Differences of independent noise have two and six times its variance. A bend is no noise: the smaller one counts.
    deviations = np.median(np.abs(first - np.median(first))) / np.sqrt(2), np.median(np.abs(second)) / np.sqrt(6)
    return 1.4826 * float(min(deviations))


def count_at_end(holds: NDArray[np.bool_]) -> int:
    """Return the length of the row of True values with which an array ends."""
    return len(holds) if holds.all() else int(np.argmin(holds[::-1]))


def update_in_words(ratio: float) -> str:
    """Return the size of an update, given over that of the weights, in words."""
    return f"{100 * ratio:.2g}% of the weights" if ratio < 1 else f"{ratio:.3g} times the weights"


def running_median(values: Floats, width: int) -> Floats:
    """Return, at each point, the median of the last `width` values, or of all values if there are fewer."""
    rows = np.arange(len(values))
    padded = np.concatenate([np.full(width - 1, np.inf), values])  # inf is sorted behind the values
    windows = np.sort(padded[rows[:, None] + np.arange(width)])
    count = np.minimum(rows + 1, width)
    medians: Floats = (windows[rows, (count - 1) // 2] + windows[rows, count // 2]) / 2
    return medians

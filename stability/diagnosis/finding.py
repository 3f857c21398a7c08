"""What detectors share: the form of a finding, the thresholds, and how a signal is looked at."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from stability.diagnosis.table import Table

Outcome = Literal[
    "stable", "slow", "undecided", "blank_collapse", "mode_collapse", "exploded", "non_finite", "bad_data"
]
Floats = NDArray[np.float64]
Steps = NDArray[np.int64]

THRESHOLDS: dict[str, dict[str, float]] = tomllib.loads(Path(__file__).with_name("thresholds.toml").read_text())


@dataclass(frozen=True)
class Finding:
    """What a detector saw: what becomes of the training and why, since which step, at which step it was sure, in which
    signal, its value there, what was expected, and what to try.
    """

    kind: Outcome
    cause: str
    onset_step: int
    detected_step: int
    signal: str
    value: float
    expected: str
    advice: str


def measured(signals: Table, name: str) -> tuple[Steps, NDArray[np.float32]]:
    """Steps and values where that signal was measured; nothing if it was not recorded."""
    if name not in signals.names:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    there = signals.measured[:, signals.names.index(name)]
    return signals.steps[there], signals[name][there]


def finite(signals: Table, name: str) -> tuple[Steps, Floats]:
    """As `measured`, in float64 and without what is not finite: one NaN spoils no later detection."""
    steps, values = measured(signals, name)
    kept = np.isfinite(values)
    return steps[kept], values[kept].astype(np.float64)


def until(series: tuple[Steps, Floats], step: int) -> Floats:
    """The values up to that step."""
    steps, values = series
    return values[: np.searchsorted(steps, step, "right")]


def between(series: tuple[Steps, Floats], first: int, last: int) -> Floats:
    """The values from one step to another, both included."""
    steps, values = series
    return values[np.searchsorted(steps, first) : np.searchsorted(steps, last, "right")]


def of_weights(ratio: float) -> str:
    """The size of an update beside that of the weights, in words."""
    return f"{100 * ratio:.2g}% of the weights" if ratio < 1 else f"{ratio:.3g} times the weights"


def running_median(values: Floats, width: int) -> Floats:
    """At each point the median of the last `width`, or of as many as there are."""
    first = [np.median(values[: n + 1]) for n in range(min(width - 1, len(values)))]
    if len(values) < width:
        return np.array(first)
    return np.concatenate([first, np.median(sliding_window_view(values, width), axis=1)])

"""Detectors: signals in, a finding or nothing out. Each looks for one thing and knows no trainer.

A signal that was not recorded is no evidence: its detector finds nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stability.diagnosis.signals import Table

BLANK_SHARE = 0.95  # of frames: what counts as saying nothing but blank
LEARNED_PER = 0.9  # a decoder that says nothing but blank reads exactly 1
STILL_FALLING = 0.01  # of the loss, from one quarter of the run to the next
_GROWN = 3.0  # times the gradient norm's own past: an explosion, if it lasts
_LASTING = 5  # points
_POINTS = 1000


@dataclass(frozen=True)
class Finding:
    """What a detector saw: since which step, at which step it was sure, in which signal, and what it had expected."""

    kind: str
    onset_step: int
    detected_step: int
    signal: str
    value: float
    expected: str


def non_finite(signals: Table) -> Finding | None:
    """The first loss or gradient that is not a number. An fp16 overflow that a smaller scale can mend is none."""
    found = []
    for name in ("loss", "grad_norm"):
        steps, values = measured(signals, name)
        bad = ~np.isfinite(values)
        if name == "grad_norm" and "loss_scale" in signals.names:
            bad &= signals["loss_scale"][np.isin(signals.steps, steps)] <= 1
        if bad.any():
            at = int(bad.argmax())
            found.append(
                Finding("non_finite", int(steps[at]), int(steps[at]), name, float(values[at]), "a finite number")
            )
    return min(found, key=lambda finding: finding.onset_step, default=None)


def exploded(signals: Table) -> Finding | None:
    """A gradient norm that grew to a multiple of its own past and stayed there, while the loss got no better.

    Every point is compared with the median of all before it, so a norm that is large but usual is none, nor is a
    spike. The points may be any number of steps apart; of a long run they are medians of some steps.
    """
    steps, norms = measured(signals, "grad_norm")
    if len(steps) < 2 * _LASTING:
        return None
    groups = np.array_split(np.arange(len(steps)), min(len(steps), _POINTS))
    steps, norms = steps[[g[0] for g in groups]], np.array([np.median(norms[g]) for g in groups], np.float32)
    for now in range(2 * _LASTING, len(norms) + 1):
        recent, past = norms[now - _LASTING : now], norms[: now - _LASTING]
        usual = float(np.median(past))
        if np.median(recent) <= _GROWN * usual or _improved(signals, int(steps[now - _LASTING - 1])):
            continue
        high = np.flatnonzero(norms[:now] > _GROWN * usual)
        onset = int(steps[high[high >= now - 2 * _LASTING][0]])
        return Finding(
            "exploded",
            onset,
            int(steps[now - 1]),
            "grad_norm",
            float(np.median(recent)),
            f"about {usual:.3g}, as before",
        )
    return None


def says_only_blank(signals: Table) -> Finding | None:
    """Nothing but blank up to the last step; the onset is the first step since which that holds."""
    steps, shares = measured(signals, "blank_fraction")
    speaks = np.flatnonzero(shares < BLANK_SHARE)
    first = int(speaks[-1]) + 1 if len(speaks) else 0
    if first >= len(steps):
        return None
    value = float(np.median(shares[first:]))
    return Finding(
        "says_only_blank", int(steps[first]), int(steps[-1]), "blank_fraction", value, f"below {BLANK_SHARE}"
    )


def loss_fall(signals: Table) -> float:
    """By what share the loss fell from the run's third quarter to its last, median against median."""
    _, loss = measured(signals, "loss")
    quarter = max(1, len(loss) // 4)
    before = np.median(loss[-2 * quarter : -quarter] if len(loss) > 1 else loss)
    return float(1 - np.median(loss[-quarter:]) / before)


def measured(signals: Table, name: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Steps and values where that signal was measured; nothing if it was not recorded."""
    if name not in signals.names:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    there = signals.measured[:, signals.names.index(name)]
    return signals.steps[there], signals[name][there]


def _improved(signals: Table, step: int) -> bool:
    """Whether the loss after that step came to lie below where it was: then larger gradients do no harm."""
    steps, loss = measured(signals, "loss")
    before, after = loss[steps <= step][-_LASTING:], loss[steps > step]
    return bool(len(before) and len(after) and np.median(after) < np.median(before))

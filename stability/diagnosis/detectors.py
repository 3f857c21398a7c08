"""Detectors: signals in, a finding or nothing out. Each looks for one thing and knows no trainer."""

from dataclasses import dataclass

import numpy as np

from stability.diagnosis.signals import Table

BLANK_SHARE = 0.95  # of frames: what counts as saying nothing but blank
LEARNED_PER = 0.9  # a decoder that says nothing but blank reads exactly 1
STILL_FALLING = 0.01  # of the loss, from one quarter of the run to the next


@dataclass(frozen=True)
class Finding:
    """What a detector saw: from which step, at which step it was sure, in which signal, and what it had expected."""

    kind: str
    onset_step: int
    detected_step: int
    signal: str
    value: float
    expected: str


def non_finite(signals: Table) -> Finding | None:
    """The first loss or gradient that is not a number. An fp16 overflow that a smaller scale can mend is none."""
    steps, loss, norm = signals.steps, signals["loss"], signals["grad_norm"]
    last_scale = signals["loss_scale"] <= 1
    bad = ~np.isfinite(loss) | (~np.isfinite(norm) & last_scale)
    if not bad.any():
        return None
    first = int(bad.argmax())
    signal = "loss" if not np.isfinite(loss[first]) else "grad_norm"
    return Finding(
        "non_finite",
        int(steps[first]),
        int(steps[first]),
        signal,
        float(signals[signal][first]),
        "a finite number",
    )


def says_only_blank(signals: Table) -> Finding | None:
    """Nothing but blank up to the last step; the onset is the first step since which that holds."""
    steps = signals.steps
    speaks = np.flatnonzero(signals["blank_fraction"] < BLANK_SHARE)
    first = int(speaks[-1]) + 1 if len(speaks) else 0
    if first >= len(steps):
        return None
    value = float(np.median(signals["blank_fraction"][first:]))
    return Finding(
        "says_only_blank", int(steps[first]), int(steps[-1]), "blank_fraction", value, f"below {BLANK_SHARE}"
    )


def loss_fall(signals: Table) -> float:
    """By what share the loss fell from the run's third quarter to its last, median against median."""
    loss = signals["loss"]
    quarter = max(1, len(loss) // 4)
    before, after = (
        np.median(loss[-2 * quarter : -quarter] if len(loss) > 1 else loss),
        np.median(loss[-quarter:]),
    )
    return float(1 - after / before)

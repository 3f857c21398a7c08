"""The responses of a trial: the numbers that a study compares, computed from what was recorded of it."""

import math
from typing import Any

import numpy as np

from stability.diagnosis.finding import readings
from stability.diagnosis.table import Table

SIGNALS_USED = ("applied_norm", "frame_information", "distinct_phonemes", "grad_norm", "loss", "loss_scale")

# Nats of frame information below which a decoder predicts the same for every frame. Trainings begin on this plateau.
# In the trials of the diagnosis, a decoder leaves it as the blank share falls below 0.95; on other data the blank share
# may never reach 0.95.
_PLATEAU = 0.1
HEALTHY = ("stable", "slow")  # outcomes
_CUT_SHORT = ("exploded", "non_finite", "bad_data")  # outcomes after which nothing is known of the plateau
_START = 10  # the first steps: their gradient norms are no spikes


def measured(
    signals: Table, validation: Table, *, outcome: str, cause: str | None, budget: int | None = None
) -> dict[str, Any]:
    """Compute the responses of a trial from what was recorded of it.

    Args:
        signals: A row per training step.
        validation: A row per validation.
        outcome: The outcome of its verdict.
        cause: The cause of its verdict.
        budget: How many steps the trial was meant to have; None if that is not known.

    Returns:
        The fields of `stability.analysis.trial.Trial` from `outcome` to `loss`.
    """
    ended = int(signals.steps[-1]) + 1 if len(signals.steps) else 0
    steps, censored = None, False
    if "frame_information" in signals.names and np.isfinite(signals["frame_information"]).any():
        count, left = plateau_steps(signals)
        censored = not left or (budget is not None and ended < budget) or outcome in _CUT_SHORT
        steps = ended if censored else count
    _, rates = readings(validation, "per")
    spike, largest = norm_spike(signals) if "grad_norm" in signals.names else (math.nan, math.nan)
    return {
        "outcome": outcome,
        "cause": cause,
        "healthy": outcome in HEALTHY or (outcome == "undecided" and cause == "no validation"),
        "steps": steps,
        "censored": censored,
        "per": math.nan if not len(rates) else float(rates[-1]) if np.isfinite(rates[-1]) else 1.0,
        "norm_spike": spike,
        "largest_norm": largest,
        "phonemes": late_median(signals, "distinct_phonemes"),
        "loss": late_median(signals, "loss"),
    }


def plateau_steps(signals: Table) -> tuple[int, bool]:
    """Count the steps until the decoder leaves the plateau for good.

    Frame information is measured only now and then; between two measurements, it is interpolated.

    Returns:
        The number of steps to the last crossing of 0.1 nats, and whether the decoder left the plateau. If it did not,
        the number is 0.
    """
    measured = np.isfinite(signals["frame_information"])
    steps, information = signals.steps[measured], signals["frame_information"][measured]
    (on,) = np.nonzero(information < _PLATEAU)
    if not len(on):
        return 1, len(steps) > 0
    around = slice(on[-1], on[-1] + 2)
    if len(steps[around]) < 2:
        return 0, False
    return math.ceil(np.interp(_PLATEAU, information[around], steps[around])) + 1, True


def norm_spike(signals: Table) -> tuple[float, float]:
    """Measure the largest spike of the gradient norm after the first 10 steps.

    A step of fp16 training that was skipped because of an overflow does not count: the loss scaler expects these.

    Returns:
        The natural logarithm of the largest norm over the median of the norms before it, and that largest norm. Both
        are inf if a norm was not finite.
    """
    counts = signals.measured[:, signals.names.index("grad_norm")].copy()
    if {"applied_norm", "loss_scale"} <= {*signals.names}:
        counts &= (signals["applied_norm"] != 0) | (signals["loss_scale"] == 1)
    norms = signals["grad_norm"][counts].astype(np.float64)
    if not np.isfinite(norms).all():
        return np.inf, np.inf
    first = min(_START, len(norms) // 2)
    if not first:
        return 0.0, float(norms.max(initial=0.0))
    at = first + int(norms[first:].argmax())
    tiny = np.finfo(np.float32).tiny  # a gradient can be exactly 0
    return float(np.log(max(norms[at], tiny) / max(np.median(norms[:at]), tiny))), float(norms[at])


def late_median(signals: Table, name: str) -> float:
    """Compute the median of a signal over the last tenth of the steps.

    Returns:
        The median; inf if the signal was recorded and is not a number there; NaN if it was not recorded.
    """
    if name not in signals.names:
        return float("nan")
    late = signals[name][-max(1, len(signals.steps) // 10) :]
    late = late[~np.isnan(late)]
    return float(np.median(late)) if len(late) else float("inf")

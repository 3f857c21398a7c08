"""The verdict on a training: its outcome, since which step, the evidence, and what to try."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from math import isfinite
from typing import Literal, get_args

import numpy as np

from stability.diagnosis.collapse import forecast, narrow_output_since, why_no_progress
from stability.diagnosis.detectors import findings
from stability.diagnosis.explosion import recovered
from stability.diagnosis.finding import THRESHOLDS, Finding, Outcome, finite_readings
from stability.diagnosis.non_finite import not_finite_parts
from stability.diagnosis.table import Table

Fault = Literal[
    "non_finite", "bad_data", "not_training", "exploded", "degraded", "blank_collapse", "mode_collapse"
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
FATAL: tuple[Fault, ...] = ("non_finite", "bad_data")  # no training can go on after these
_SOME, _WELL = THRESHOLDS["learned"]["some"], THRESHOLDS["learned"]["well"]
_MULTIPLE = 3.0  # losses ended well if the last validation loss is at most this many times the best one
_FLAT = 0.01  # a loss is flat if it falls by a smaller share than this from one quarter of the plateau to the next


@dataclass(frozen=True)
class Verdict:
    """The verdict on a training: how it ended, why, and what to try.

    Attributes:
        outcome: `stable`, `slow`, `undecided`, or a fault.
        cause: Why, in one word; None if there is nothing to explain.
        onset_step: The step at which it began; None if there is none.
        detected_step: The step at which there was enough evidence; None if nothing was recorded.
        evidence: What was measured, by name.
        advice: What to try; empty if all is well.
    """

    outcome: Outcome
    cause: str | None = None
    onset_step: int | None = None
    detected_step: int | None = None
    evidence: dict[str, float | str] = field(default_factory=dict)
    advice: str = ""

    def to_json(self) -> str:
        """Return the verdict as strict JSON.

        JSON has no NaN and no infinity: such evidence is written as the text "nan", "inf" or "-inf".
        """
        evidence = {n: str(v) if isinstance(v, float) and not isfinite(v) else v for n, v in self.evidence.items()}
        return json.dumps(asdict(self) | {"evidence": evidence}, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Verdict":
        """Read a verdict that `to_json` wrote. Evidence that is not finite stays text."""
        return cls(**json.loads(text))


def stopping_verdict(
    signals: Table, validation: Table, stop_on: Collection[str], found: Sequence[Finding] | None = None
) -> Verdict | None:
    """Return the verdict that ends a training early.

    Args:
        signals: A row per training step so far.
        validation: A row per validation so far.
        stop_on: The kinds of findings that end a training.
        found: The `findings` of these tables, if the caller has them.

    Returns:
        The verdict on the first finding of these kinds; None if there is none.
    """
    for finding in findings(signals, validation) if found is None else found:
        if finding.kind in stop_on:
            return _verdict(finding, signals, _evidence(signals, validation))
    return None


def is_check_due(step: int) -> bool:
    """Return whether to run the detectors before a step: every 10th, and later, as they take longer, every 80th."""
    return step % (10 * min(max(step // 100, 1), 8)) == 0


def judge(signals: Table, validation: Table, found: Sequence[Finding] | None = None) -> Verdict:
    """Return the verdict on a training that has ended, or on what a log contains of one.

    A finding decides if it still holds at the end: a training whose loss came back, or whose decoder outputs more than
    blank again, has recovered. If no finding decides, the last error rate does: the training is stable if the rate is
    good, slow if the rate shows that it learns, and undecided if it is on the blank plateau or has learned nothing.
    What was not recorded is not judged.

    Args:
        signals: A row per training step.
        validation: A row per validation, with `per` (the error rate, 1 if all is wrong) and `loss`.
        found: The `findings` of these tables, if the caller has them.
    """
    if not len(signals.steps):
        return Verdict("undecided", "no signals", advice="No training step was recorded.")
    evidence = _evidence(signals, validation)
    end = int(signals.steps[-1])
    _, rates = finite_readings(validation, "per")
    last = float(rates[-1]) if len(rates) else float("nan")
    found = findings(signals, validation) if found is None else found
    # If a decoder outputs little and the labels may differ, the labels explain it better.
    for finding in sorted(found, key=lambda f: (f.kind not in FATAL, f.cause != "labels")):
        if finding.kind in FATAL or _still_holds(finding, signals, validation):
            return _verdict(finding, signals, evidence)
    conclude = partial(Verdict, detected_step=end, evidence=evidence)
    if last <= _WELL:
        return conclude("stable")
    narrow = narrow_output_since(signals, end)
    if not len(rates):
        if narrow is None:
            advice = "No validation was recorded. The loss alone does not show whether it learned."
            return conclude("undecided", "no validation", advice=advice)
        last = 1.0
    cause, advice = why_no_progress(signals, end)
    if narrow is None or last < _SOME:
        if last < _SOME:
            return conclude("slow", cause, advice=f"It learns, but it is far behind. {advice}")
        best = min(rates, default=last)
        lost = f"It had an error rate of {best:.2g}, and lost it again."
        state = lost if best < _SOME else "It has not learned anything yet."
        return conclude("undecided", cause, advice=f"{state} {advice}")
    since, blank = narrow
    ahead = forecast(signals, since, end)
    if ahead is None and blank and _is_flat(signals, since):
        advice = f"The decoder outputs only blank, and the loss is flat. {advice}"
        return conclude("blank_collapse", cause, since, advice=advice)
    if ahead is not None:
        evidence["forecast end of the blank plateau"] = str(ahead)
    return conclude("undecided", cause, since, advice=f"Training ended on the blank plateau. {advice}")


def _is_flat(signals: Table, since: int) -> bool:
    """Whether the loss is flat since that step. It decides if the frame information was not measured."""
    steps, loss = finite_readings(signals, "loss")
    loss = loss[steps >= since]
    quarter = len(loss) // 4
    return quarter > 0 and bool(np.median(loss[-quarter:]) > (1 - _FLAT) * np.median(loss[-2 * quarter : -quarter]))


def _still_holds(finding: Finding, signals: Table, validation: Table) -> bool:
    """Whether the training has not recovered from a finding by its end."""
    _, rates = finite_readings(validation, "per")
    last = float(rates[-1]) if len(rates) else float("nan")
    if finding.kind == "exploded":
        return not (recovered(signals, finding) or _losses_ended_well(signals, validation)) or last > _WELL
    if finding.cause == "labels":
        return not last < _SOME
    return narrow_output_since(signals, int(signals.steps[-1])) is not None and not last <= _WELL


def _losses_ended_well(signals: Table, validation: Table) -> bool:
    """Whether the training loss ended below its start, and the validation loss near its best."""
    _, loss = finite_readings(signals, "loss")
    _, losses = finite_readings(validation, "loss")
    ended = len(loss) > 10 and bool(np.median(loss[-10:]) < np.median(loss[:5]))
    return ended and len(losses) > 0 and bool(losses[-1] <= _MULTIPLE * losses.min())


def _verdict(finding: Finding, signals: Table, evidence: dict[str, float | str]) -> Verdict:
    seen: dict[str, float | str] = {finding.signal: finding.value, f"{finding.signal} expected": finding.expected}
    steps, norms = finite_readings(signals, "grad_norm")
    if finding.kind in FATAL and (steps < finding.onset_step).any():
        seen["gradient norm before"] = float(norms[steps < finding.onset_step][-1])
    at = int(np.searchsorted(signals.steps, finding.onset_step))
    if finding.kind == "non_finite" and (parts := not_finite_parts(signals, at)):
        seen["gradient not finite in"] = ", ".join(parts)
    return Verdict(
        outcome=finding.kind,
        cause=finding.cause,
        onset_step=finding.onset_step,
        detected_step=finding.detected_step,
        evidence=seen | evidence,
        advice=finding.advice,
    )


def _evidence(signals: Table, validation: Table) -> dict[str, float | str]:
    evidence: dict[str, float | str] = {}
    _, rates = finite_readings(validation, "per")
    if len(rates):
        evidence |= {"validation PER": float(rates[-1]), "best validation PER": float(rates.min())}
    _, blank = finite_readings(signals, "blank_fraction")
    if len(blank):
        evidence["blank fraction"] = float(np.median(blank[-max(1, len(blank) // 10) :]))
    _, norms = finite_readings(signals, "grad_norm")
    if len(norms) > 1:
        evidence["largest gradient norm after the first"] = float(norms[1:].max())
    for name, what in (
        ("clipped", "share of steps clipped"),
        ("epsilon_dominance", "share of second-moment roots below epsilon"),
        ("effective_lr", "effective learning rate"),
        ("update_ratio", "size of an update over size of the weights"),
    ):
        _, values = finite_readings(signals, name)
        if len(values):
            evidence[what] = float(values.mean() if name == "clipped" else values[-1])
    return evidence

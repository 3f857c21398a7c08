"""The verdict: what became of a trial, since which step, on what evidence, and what to try."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Literal, get_args

import numpy as np

from stability.diagnosis.collapse import forecast, narrow_since, why_no_progress
from stability.diagnosis.detectors import findings
from stability.diagnosis.explosion import recovered
from stability.diagnosis.finding import THRESHOLDS, Finding, Outcome, finite
from stability.diagnosis.non_finite import not_finite_parts
from stability.diagnosis.table import Table

Fault = Literal["non_finite", "bad_data", "exploded", "blank_collapse", "mode_collapse"]
SOME, WELL = THRESHOLDS["learned"]["some"], THRESHOLDS["learned"]["well"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
FATAL: tuple[Fault, ...] = ("non_finite", "bad_data")  # no training goes on from there
_MULTIPLE = 3.0  # times the best validation loss: no good end, whatever the error rate
_FLAT = 0.01  # of the loss, from one quarter of the plateau to the next


@dataclass(frozen=True)
class Verdict:
    """What became of a trial. Evidence is {what was looked at: its value}.

    `to_json` is strict JSON, which has no number that is not finite: such evidence is written as "nan", "inf" or
    "-inf", and stays a text when `from_json` reads it.
    """

    outcome: Outcome
    cause: str | None
    onset_step: int | None
    detected_step: int | None
    evidence: dict[str, float | str] = field(default_factory=dict)
    advice: str = ""

    def to_json(self) -> str:
        """The content of `verdict.json`."""
        evidence = {n: str(v) if isinstance(v, float) and not isfinite(v) else v for n, v in self.evidence.items()}
        return json.dumps(asdict(self) | {"evidence": evidence}, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Verdict":
        """The verdict that `to_json` wrote."""
        return cls(**json.loads(text))


def stopped(
    signals: Table, validation: Table, stop_on: Collection[str], found: Sequence[Finding] | None = None
) -> Verdict | None:
    """The verdict that ends a training before its budget: by the first finding of those kinds; None without one.

    `found` are the `findings` of these tables, if they are known already.
    """
    for finding in findings(signals, validation) if found is None else found:
        if finding.kind in stop_on:
            return _of(finding, signals, _evidence(signals, validation))
    return None


def is_due(step: int) -> bool:
    """Whether to ask for findings before that step: every 10th, later more seldom, since a longer past takes longer."""
    return step % (10 * min(max(step // 100, 1), 8)) == 0


def judge(signals: Table, validation: Table, found: Sequence[Finding] | None = None) -> Verdict:
    """The verdict on a trial whose budget is spent, or on what a log has of one.

    What its detectors found stands if it still holds at the end: a loss that came back, or a decoder that speaks again,
    has recovered. Else it is stable if its last error rate is good, slow if it is on its way, and undecided if it is
    still on the blank plateau or learned nothing. What was not recorded is not judged. `found` are the `findings` of
    these tables, if they are known already.
    """
    if not len(signals.steps):
        return Verdict("undecided", "no signals", None, None, {}, "No training step was recorded.")
    evidence = _evidence(signals, validation)
    end = int(signals.steps[-1])
    _, rates = finite(validation, "per")
    last = float(rates[-1]) if len(rates) else float("nan")
    # Of a decoder that says little, other labels than it is validated on are the better explanation.
    found = findings(signals, validation) if found is None else found
    for finding in sorted(found, key=lambda f: (f.kind not in FATAL, f.cause != "labels")):
        if finding.kind in FATAL or _still_holds(finding, signals, validation):
            return _of(finding, signals, evidence)
    narrow = narrow_since(signals, end)
    if last <= WELL:
        return Verdict("stable", None, None, end, evidence)
    if not len(rates):
        if narrow is None:
            advice = "No validation was recorded: whether it learned cannot be said from the loss alone."
            return Verdict("undecided", "no validation", None, end, evidence, advice)
        last = 1.0
    cause, advice = why_no_progress(signals, end)
    if narrow is None or last < SOME:
        if last < SOME:
            return Verdict("slow", cause, None, end, evidence, f"It learns, and is far behind. {advice}")
        best = min(rates, default=last)
        state = f"It is back from an error rate of {best:.2g}." if best < SOME else "It has not learned anything yet."
        return Verdict("undecided", cause, None, end, evidence, f"{state} {advice}")
    since, blank = narrow
    ahead = forecast(signals, since, end)
    if ahead is None and blank and _is_flat(signals, since):
        return Verdict(
            "blank_collapse", cause, since, end, evidence, f"It says nothing but blank, at a flat loss. {advice}"
        )
    if ahead is not None:
        evidence["the blank plateau should end"] = str(ahead)
    return Verdict("undecided", cause, since, end, evidence, f"The budget ended on the blank plateau. {advice}")


def _is_flat(signals: Table, since: int) -> bool:
    """Whether the loss stands still, where what blank hides was not measured."""
    steps, loss = finite(signals, "loss")
    loss = loss[steps >= since]
    quarter = len(loss) // 4
    return quarter > 0 and bool(np.median(loss[-quarter:]) > (1 - _FLAT) * np.median(loss[-2 * quarter : -quarter]))


def _still_holds(finding: Finding, signals: Table, validation: Table) -> bool:
    """Whether at the end a training has not got over what was found."""
    _, rates = finite(validation, "per")
    last = float(rates[-1]) if len(rates) else float("nan")
    if finding.kind == "exploded":
        return not (recovered(signals, finding) or _sound(signals, validation)) or last > WELL
    if finding.cause == "labels":
        return not last < SOME
    return narrow_since(signals, int(signals.steps[-1])) is not None and not last <= WELL


def _sound(signals: Table, validation: Table) -> bool:
    """Whether losses have ended well: in training below the start, in validation no multiple of the best."""
    _, loss = finite(signals, "loss")
    _, losses = finite(validation, "loss")
    ended = len(loss) > 10 and bool(np.median(loss[-10:]) < np.median(loss[:5]))
    return ended and len(losses) > 0 and bool(losses[-1] <= _MULTIPLE * losses.min())


def _of(finding: Finding, signals: Table, evidence: dict[str, float | str]) -> Verdict:
    seen: dict[str, float | str] = {finding.signal: finding.value, f"{finding.signal} expected": finding.expected}
    steps, norms = finite(signals, "grad_norm")
    if finding.kind in FATAL and (steps < finding.onset_step).any():
        seen["gradient norm before"] = float(norms[steps < finding.onset_step][-1])
    at = int(np.searchsorted(signals.steps, finding.onset_step))
    if finding.kind == "non_finite" and (parts := not_finite_parts(signals, at)):
        seen["gradient not finite in"] = ", ".join(parts)
    return Verdict(
        finding.kind, finding.cause, finding.onset_step, finding.detected_step, seen | evidence, finding.advice
    )


def _evidence(signals: Table, validation: Table) -> dict[str, float | str]:
    evidence: dict[str, float | str] = {}
    _, rates = finite(validation, "per")
    if len(rates):
        evidence |= {"validation PER": float(rates[-1]), "best validation PER": float(rates.min())}
    _, blank = finite(signals, "blank_fraction")
    if len(blank):
        evidence["blank fraction"] = float(np.median(blank[-max(1, len(blank) // 10) :]))
    _, norms = finite(signals, "grad_norm")
    if len(norms) > 1:
        evidence["largest gradient norm after the first"] = float(norms[1:].max())
    for name, what in (
        ("clipped", "share of steps clipped"),
        ("epsilon_dominance", "share of second-moment roots below epsilon"),
        ("effective_lr", "effective learning rate"),
        ("update_ratio", "size of an update over size of the weights"),
    ):
        _, values = finite(signals, name)
        if len(values):
            evidence[what] = float(values.mean() if name == "clipped" else values[-1])
    return evidence

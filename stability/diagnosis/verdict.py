"""The verdict: what became of a trial, since which step, on what evidence, and what to try."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from stability.diagnosis import detectors
from stability.diagnosis.signals import Table

Outcome = Literal["stable", "undecided", "blank_collapse", "non_finite"]


@dataclass(frozen=True)
class Verdict:
    """What became of a trial. Evidence is {what was looked at: its value}."""

    outcome: Outcome
    cause: str | None
    onset_step: int | None
    detected_step: int | None
    evidence: dict[str, float | str] = field(default_factory=dict)
    advice: str = ""


def failed(signals: Table) -> Verdict | None:
    """The verdict on a trial that cannot go on, while it runs; None on one that can."""
    finding = detectors.non_finite(signals)
    if finding is None:
        return None
    at = int(np.searchsorted(signals.steps, finding.onset_step))
    parts = [n for n in signals.names if n.startswith("grad_norm.") and not np.isfinite(signals[n][at])]
    where = ", ".join(n.removeprefix("grad_norm.") for n in parts)
    before = float(signals["grad_norm"][at - 1]) if at else float("nan")
    loss_failed = finding.signal == "loss"
    return Verdict(
        "non_finite",
        "loss" if loss_failed else "gradient",
        finding.onset_step,
        finding.detected_step,
        {
            finding.signal: finding.value,
            "gradient not finite in": where,
            "gradient norm a step before": before,
        },
        f"The weights are those before step {finding.onset_step}. "
        + (
            "The loss itself is not finite: look at the batch and at the outputs' size before the optimiser."
            if loss_failed
            else f"The loss is finite and its gradient is not, in {where}: try precision=fp32, then a lower lr."
        ),
    )


def judge(signals: Table, validation: Table) -> Verdict:
    """The verdict on a trial whose budget is spent, by simple rules.

    It has learned if its last phoneme error rate is clearly below 1, what saying nothing but blank reads. If it
    has not, and says nothing but blank, it is undecided while its loss still falls, and collapsed otherwise.
    """
    verdict = failed(signals)
    if verdict is not None:
        return verdict
    rates = validation["per"] if len(validation.steps) else np.array([np.inf], np.float32)
    last, best = float(rates[-1]), float(rates.min())
    fall = detectors.loss_fall(signals)
    blank = float(np.median(signals["blank_fraction"][-max(1, len(signals.steps) // 10) :]))
    evidence: dict[str, float | str] = {
        "validation PER": last,
        "best validation PER": best,
        "blank fraction": blank,
        "loss fell in the last quarter by": fall,
        "share of steps clipped": float(signals["clipped"].mean()),
    }
    if last < detectors.LEARNED_PER:
        learned = np.flatnonzero(rates < detectors.LEARNED_PER)
        evidence["first validation under 0.9 at step"] = float(validation.steps[learned[0]])
        return Verdict("stable", None, None, int(signals.steps[-1]), evidence)
    only_blank = detectors.says_only_blank(signals)
    evidence |= _second_moments(signals)
    if only_blank is None:
        advice = "It neither learns nor says only blank: look at the loss curve; a lower lr or more steps may tell."
        return Verdict("undecided", "not learning", None, int(signals.steps[-1]), evidence, advice)
    relapsed = best < detectors.LEARNED_PER
    if fall > detectors.STILL_FALLING and not relapsed:
        advice = "The loss still falls: more steps would tell. " + _advice(signals)
        return Verdict("undecided", "blank plateau", only_blank.onset_step, only_blank.detected_step, evidence, advice)
    cause = "relapse" if relapsed else "never left the blank plateau"
    return Verdict("blank_collapse", cause, only_blank.onset_step, only_blank.detected_step, evidence, _advice(signals))


def _second_moments(signals: Table) -> dict[str, float | str]:
    return {
        "share of second-moment roots below epsilon": _last_measured(signals, "epsilon_dominance"),
        "effective learning rate": _last_measured(signals, "effective_lr"),
    }


def _advice(signals: Table) -> str:
    """What the optimiser's own state says about a trial that does not leave the plateau."""
    share, rate = _last_measured(signals, "epsilon_dominance"), _last_measured(signals, "effective_lr")
    if share < 0.9:
        return "Few second-moment roots lie below epsilon: look at the data and the schedule rather than at epsilon."
    ratio = float(np.median(signals["loss"] / signals["loss_per_label"]))
    scale = (
        "the loss is a per-label mean, whose gradients are smaller than a per-trial sum's by the number of labels; "
        "try loss=per_trial_sum or a smaller optimizer.epsilon"
        if ratio < 1.01
        else "try a smaller optimizer.epsilon or a higher schedule.lr_max"
    )
    return (
        f"Second-moment roots lie below epsilon for {share:.0%} of the parameters: "
        f"this is momentum SGD at a learning rate of {rate:.2g}; {scale}."
    )


def _last_measured(signals: Table, name: str) -> float:
    values = signals[name]
    measured = values[np.isfinite(values)]
    return float(measured[-1]) if len(measured) else float("nan")

"""The verdict: what became of a trial, since which step, on what evidence, and what to try."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from stability.diagnosis import detectors
from stability.diagnosis.signals import Table

Outcome = Literal["stable", "undecided", "blank_collapse", "exploded", "non_finite"]


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
    evidence: dict[str, float | str] = {finding.signal: finding.value}
    if parts:
        evidence["gradient not finite in"] = where
    steps, norms = detectors.measured(signals, "grad_norm")
    if (steps < finding.onset_step).any():
        evidence["gradient norm before"] = float(norms[steps < finding.onset_step][-1])
    if finding.signal == "loss":
        advice = "The loss itself is not finite: look at the batch and at the outputs' size before the optimiser."
    else:
        place = f", in {where}" if parts else ""
        advice = f"The loss is finite and its gradient is not{place}: try precision=fp32, then a lower lr."
    cause = "loss" if finding.signal == "loss" else "gradient"
    return Verdict("non_finite", cause, finding.onset_step, finding.detected_step, evidence, advice)


def judge(signals: Table, validation: Table) -> Verdict:
    """The verdict on a trial whose budget is spent, or on what a log has of one, by simple rules.

    It has learned if its last phoneme error rate is clearly below 1, what saying nothing but blank reads. If not,
    it exploded if its gradients grew for good; and if it says nothing but blank, it is undecided while its loss still
    falls, and collapsed otherwise. What was not recorded is not judged.
    """
    verdict = failed(signals)
    if verdict is not None:
        return verdict
    end = int(signals.steps[-1])
    evidence = _evidence(signals, validation)
    steps, rates = detectors.measured(validation, "per")
    learned = steps[rates < detectors.LEARNED_PER]
    if len(rates) and rates[-1] < detectors.LEARNED_PER:
        evidence["first validation under 0.9 at step"] = float(learned[0])
        return Verdict("stable", None, None, end, evidence)
    explosion = detectors.exploded(signals)
    if explosion is not None:
        evidence["gradient norm after the onset"] = explosion.value
        evidence["gradient norm expected"] = explosion.expected
        advice = "The gradients grew and stayed large while the loss got no better: lower the lr, or warm up longer."
        cause = "relapse" if len(learned) else "never learned"
        return Verdict("exploded", cause, explosion.onset_step, explosion.detected_step, evidence, advice)
    only_blank = detectors.says_only_blank(signals)
    if only_blank is None:
        advice = "It neither learned nor says only blank: look at the loss curve; a lower lr or more steps may tell."
        if not len(rates):
            advice = "No validation was recorded: whether it learned cannot be said from the loss alone."
        return Verdict("undecided", "not learning" if len(rates) else "no validation", None, end, evidence, advice)
    since, detected = only_blank.onset_step, only_blank.detected_step
    if not len(learned) and detectors.loss_fall(signals) > detectors.STILL_FALLING:
        advice = f"The loss still falls: more steps would tell. {_advice(signals)}"
        return Verdict("undecided", "blank plateau", since, detected, evidence, advice)
    cause = "relapse" if len(learned) else "never left the blank plateau"
    return Verdict("blank_collapse", cause, since, detected, evidence, _advice(signals))


def _evidence(signals: Table, validation: Table) -> dict[str, float | str]:
    evidence: dict[str, float | str] = {}
    _, rates = detectors.measured(validation, "per")
    if len(rates):
        evidence |= {"validation PER": float(rates[-1]), "best validation PER": float(rates.min())}
    _, blank = detectors.measured(signals, "blank_fraction")
    if len(blank):
        evidence["blank fraction"] = float(np.median(blank[-max(1, len(blank) // 10) :]))
    if "loss" in signals.names:
        evidence["loss fell in the last quarter by"] = detectors.loss_fall(signals)
    _, norms = detectors.measured(signals, "grad_norm")
    if len(norms) > 1:
        evidence["largest gradient norm after the first"] = float(norms[1:].max())
    if "clipped" in signals.names:
        evidence["share of steps clipped"] = float(signals["clipped"].mean())
    share, rate = _second_moments(signals)
    if np.isfinite(share):
        evidence |= {"share of second-moment roots below epsilon": share, "effective learning rate": rate}
    return evidence


def _second_moments(signals: Table) -> tuple[float, float]:
    """The last share of second-moment roots below epsilon, and effective learning rate; NaN if not recorded."""
    last = [detectors.measured(signals, name)[1][-1:] for name in ("epsilon_dominance", "effective_lr")]
    share, rate = (float(values[0]) if len(values) else float("nan") for values in last)
    return share, rate


def _advice(signals: Table) -> str:
    """What the optimiser's own state says about a trial that does not leave the plateau."""
    share, rate = _second_moments(signals)
    if np.isnan(share):
        return "The optimiser's state was not recorded: see whether its second-moment roots lie below epsilon."
    if share < 0.9:
        return "Few second-moment roots lie below epsilon: look at the data and the schedule rather than at epsilon."
    scale = "try a smaller optimizer.epsilon or a higher schedule.lr_max"
    if "loss_per_label" in signals.names and np.median(signals["loss"] / signals["loss_per_label"]) < 1.01:
        scale = (
            "the loss is a per-label mean, whose gradients are smaller than a per-trial sum's by the number of labels; "
            "try loss=per_trial_sum or a smaller optimizer.epsilon"
        )
    return (
        f"Second-moment roots lie below epsilon for {share:.0%} of the parameters: "
        f"this is momentum SGD at a learning rate of {rate:.2g}; {scale}."
    )

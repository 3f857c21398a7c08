"""Losses and gradients that are not finite: since when, and whose fault it is."""

import numpy as np

from stability.diagnosis.explosion import why_exploded
from stability.diagnosis.finding import THRESHOLDS, Finding, finite, until
from stability.diagnosis.table import Table

_T = THRESHOLDS["fp16"]
_VIOLENT = 100  # times the usual loss: then the loss grew to infinity


def non_finite(signals: Table, validation: Table) -> Finding | None:
    """The first loss or gradient that is not a number, and whose fault that is: the data's, fp16's, the optimiser's.

    In fp16 an overflow is no fault as long as a smaller loss scale can mend it; one that goes on is.
    """
    return min(
        (found for found in (_first(signals), _endless_overflow(signals)) if found is not None),
        key=lambda finding: finding.detected_step,
        default=None,
    )


def _first(signals: Table) -> Finding | None:
    bad = _not_finite(signals, "loss") | (_not_finite(signals, "grad_norm") & (_column(signals, "loss_scale", 1) <= 1))
    if not bad.any():
        return None
    row = int(bad.argmax())
    step = int(signals.steps[row])
    name = "loss" if _not_finite(signals, "loss")[row] else "grad_norm"
    value = float(signals[name][row])
    largest = float(_column(signals, "input_max", 0)[row])
    if not np.isfinite(largest):
        advice = (
            f"The batch of step {step} holds a number that is not finite, before any weight has met it: find the "
            "example that it comes from, and mend it or leave it out."
        )
        return Finding("bad_data", "non_finite_input", step, step, "input_max", largest, "finite inputs", advice)
    count = _column(signals, "infeasible_targets", 0)[row]
    past = until(finite(signals, "loss"), step)
    calm = past[-5:].max(initial=0) <= _VIOLENT * np.median(past) if len(past) else True
    # Of finite logits CTC's loss is infinite for nothing else.
    if name == "loss" and (count > 0 or (value == np.inf and calm and "blank_fraction" in signals.names)):
        return _infeasible(step, float(count))
    if (why := why_exploded(signals, step, step)) is not None:
        cause, advice = why
    elif _column(signals, "loss_scale", 1)[row] > 1:
        cause, advice = "precision", "The loss overflowed in fp16: train in bf16 or fp32."
    elif name == "loss":
        cause, advice = (
            "loss",
            "Inputs are finite and nothing had grown: look at the loss itself, a log or quotient of 0.",
        )
    else:
        cause, advice = "gradient", _backward_advice(signals, row)
    return Finding("non_finite", cause, step, step, name, value, "a finite number", advice)


def _endless_overflow(signals: Table) -> Finding | None:
    """Gradients that overflow again and again although the loss is finite: the loss scale does not mend them."""
    over = _not_finite(signals, "grad_norm") & (_column(signals, "loss_scale", 1) > 1) & ~_not_finite(signals, "loss")
    scale = _column(signals, "loss_scale", 1)
    run, stuck, start = 0, 0, 0
    for row in np.flatnonzero(over):
        follows = run > 0 and over[row - 1]
        run = run + 1 if follows else 1
        stuck = stuck + 1 if follows and scale[row] >= scale[row - 1] else 0
        start = start if follows else int(row)
        if stuck >= _T["stuck"] or run >= _T["endless"]:
            first, now = int(signals.steps[start]), int(signals.steps[row])
            advice = (
                f"Gradients overflow in fp16 at every step since {first}, at a loss scale of {scale[row]:.10g}, and no "
                "update is made: let the scale be halved at an overflow (GradScaler.update), or train in bf16 or fp32."
            )
            return Finding(
                "non_finite",
                "precision",
                first,
                now,
                "loss_scale",
                float(scale[row]),
                "one that keeps gradients finite",
                advice,
            )
    return None


def _infeasible(step: int, count: float) -> Finding:
    who = f"{count:.0f} utterances" if count > 1 else "an utterance"
    advice = (
        f"The loss is not finite since CTC cannot align {who} of this batch, with fewer frames than labels (and one "
        "more between equal labels): leave such trials out, or shorten the patches' stride."
    )
    if not count > 0:  # not recorded: the loss says it
        return Finding("bad_data", "infeasible_target", step, step, "loss", np.inf, "a finite number", advice)
    return Finding("bad_data", "infeasible_target", step, step, "infeasible_targets", count, "none", advice)


def _backward_advice(signals: Table, row: int) -> str:
    parts = [n for n in signals.names if n.startswith("grad_norm.")]
    bad = not_finite_parts(signals, row)
    where = f" in {', '.join(bad)}" if 0 < len(bad) < len(parts) else ""
    loss = _column(signals, "loss", np.nan)[row]
    known = f"The loss is {loss:.3g} and its" if np.isfinite(loss) else "The"
    return (
        f"{known} gradient is not finite{where}, though nothing had grown before: some backward pass there divides by "
        "0. A trial with a flight recording can make that step again: python -m stability.diagnose --replay FOLDER."
    )


def not_finite_parts(signals: Table, row: int) -> list[str]:
    """The parts of the model whose gradient was measured in that row, and was not finite."""
    return [
        n.removeprefix("grad_norm.")
        for n in signals.names
        if n.startswith("grad_norm.") and _not_finite(signals, n)[row]
    ]


def _not_finite(signals: Table, name: str) -> np.ndarray:
    if name not in signals.names:
        return np.zeros(len(signals.steps), bool)
    return signals.measured[:, signals.names.index(name)] & ~np.isfinite(signals[name])


def _column(signals: Table, name: str, otherwise: float) -> np.ndarray:
    """That signal in all rows, and `otherwise` where it was not measured."""
    if name not in signals.names:
        return np.full(len(signals.steps), otherwise, np.float32)
    return np.where(signals.measured[:, signals.names.index(name)], signals[name], np.float32(otherwise))

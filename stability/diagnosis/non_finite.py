"""Losses and gradients that are not finite: since which step, and why."""

import numpy as np
from numpy.typing import NDArray

from stability.diagnosis.explosion import why_exploded
from stability.diagnosis.finding import THRESHOLDS, Finding, finite_readings
from stability.diagnosis.table import Table

_T = THRESHOLDS["fp16"]
_VIOLENT = 100  # times the usual loss; a loss that was larger than this before it became infinite has exploded


def non_finite(signals: Table, validation: Table) -> Finding | None:
    """Detect the first loss or gradient that is not finite, and whether the data, fp16 or the optimiser caused it.

    In fp16 an overflow is no fault if a smaller loss scale mends it. Overflows that do not end are a fault.
    """
    found = (_first_non_finite(signals), _endless_overflow(signals))
    return min((f for f in found if f is not None), key=lambda finding: finding.detected_step, default=None)


def not_finite_parts(signals: Table, row: int) -> list[str]:
    """Return the parts of the model whose gradient norm was measured in a row of the table and is not finite."""
    return [name.removeprefix("grad_norm.") for name in _part_norms(signals) if _is_not_finite(signals, name)[row]]


def _first_non_finite(signals: Table) -> Finding | None:
    in_loss, in_norm = _is_not_finite(signals, "loss"), _is_not_finite(signals, "grad_norm")
    scale = _column(signals, "loss_scale", 1)
    bad = in_loss | (in_norm & (scale <= 1))
    if not bad.any():
        return None
    row = int(bad.argmax())
    step = int(signals.steps[row])
    name = "loss" if in_loss[row] else "grad_norm"
    value = float(signals[name][row])
    largest = float(_column(signals, "input_max", 0)[row])
    if not np.isfinite(largest):
        return Finding(
            kind="bad_data",
            cause="non_finite_input",
            onset_step=step,
            detected_step=step,
            signal="input_max",
            value=largest,
            expected="finite inputs",
            advice=f"An input in the batch of step {step} is not finite. Find the example that it comes from, and "
            "repair it or leave it out.",
        )
    count = _column(signals, "infeasible_targets", 0)[row]
    past = finite_readings(signals, "loss").up_to(step)
    calm = past[-5:].max(initial=0) <= _VIOLENT * np.median(past) if len(past) else True
    # If the logits are finite, CTC's loss is infinite for no other reason.
    if name == "loss" and (count > 0 or (value == np.inf and calm and "blank_fraction" in signals.names)):
        return _infeasible_target(step, float(count))
    if (reason := why_exploded(signals, step, step)) is not None:
        cause, advice = reason
    elif scale[row] > 1:
        cause, advice = "precision", "The loss overflowed in fp16: train in bf16 or fp32."
    elif name == "loss":
        cause = "loss"
        advice = "The inputs are finite and nothing had grown: look in the loss itself for a log or quotient of 0."
    else:
        cause, advice = "gradient", _backward_advice(signals, row)
    return Finding(
        kind="non_finite",
        cause=cause,
        onset_step=step,
        detected_step=step,
        signal=name,
        value=value,
        expected="a finite number",
        advice=advice,
    )


def _endless_overflow(signals: Table) -> Finding | None:
    """Find gradients that overflow again and again though the loss is finite: no smaller loss scale mends them."""
    scale = _column(signals, "loss_scale", 1)
    overflow = _is_not_finite(signals, "grad_norm") & (scale > 1) & ~_is_not_finite(signals, "loss")
    in_a_row = not_halved = start = 0
    for row in np.flatnonzero(overflow):
        follows = in_a_row > 0 and overflow[row - 1]
        in_a_row = in_a_row + 1 if follows else 1
        not_halved = not_halved + 1 if follows and scale[row] >= scale[row - 1] else 0
        start = start if follows else int(row)
        if not_halved >= _T["stuck"] or in_a_row >= _T["endless"]:
            first = int(signals.steps[start])
            return Finding(
                kind="non_finite",
                cause="precision",
                onset_step=first,
                detected_step=int(signals.steps[row]),
                signal="loss_scale",
                value=float(scale[row]),
                expected="one that keeps gradients finite",
                advice=f"Gradients overflow in fp16 at every step since {first}, at a loss scale of "
                f"{scale[row]:.10g}, so no update is made. Halve the scale at an overflow (GradScaler.update does), or "
                "train in bf16 or fp32.",
            )
    return None


def _infeasible_target(step: int, count: float) -> Finding:
    utterances = f"{count:.0f} utterances" if count > 1 else "an utterance"
    counted = count > 0  # otherwise the loss shows that there is one
    return Finding(
        kind="bad_data",
        cause="infeasible_target",
        onset_step=step,
        detected_step=step,
        signal="infeasible_targets" if counted else "loss",
        value=count if counted else np.inf,
        expected="none" if counted else "a finite number",
        advice=f"The loss is not finite, because CTC cannot align {utterances} of this batch: there must be as many "
        "frames as labels, and one more between equal labels. Leave such utterances out, or make the frames shorter "
        "(a smaller stride).",
    )


def _backward_advice(signals: Table, row: int) -> str:
    bad = not_finite_parts(signals, row)
    where = f" in {', '.join(bad)}" if 0 < len(bad) < len(_part_norms(signals)) else ""
    loss = _column(signals, "loss", np.nan)[row]
    subject = f"The loss is {loss:.3g}, but its" if np.isfinite(loss) else "The"
    return (
        f"{subject} gradient is not finite{where}, though nothing had grown before: a backward pass there divides by "
        "0. If the trial left a flight recording, repeat that step: python -m stability.diagnose --replay FOLDER."
    )


def _part_norms(signals: Table) -> list[str]:
    return [name for name in signals.names if name.startswith("grad_norm.")]


def _is_not_finite(signals: Table, name: str) -> NDArray[np.bool_]:
    """In which rows the signal was measured and is not finite."""
    if name not in signals.names:
        return np.zeros(len(signals.steps), bool)
    return signals.measured[:, signals.names.index(name)] & ~np.isfinite(signals[name])


def _column(signals: Table, name: str, otherwise: float) -> NDArray[np.float32]:
    """The signal in all rows, and `otherwise` where it was not measured."""
    if name not in signals.names:
        return np.full(len(signals.steps), otherwise, np.float32)
    return np.where(signals.measured[:, signals.names.index(name)], signals[name], np.float32(otherwise))

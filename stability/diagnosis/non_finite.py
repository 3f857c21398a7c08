"""Losses and gradients that are not finite: since which step, and why."""

import numpy as np
from numpy.typing import NDArray

from stability.diagnosis.explosion import why_exploded
from stability.diagnosis.finding import THRESHOLDS, Finding, Floats, count_at_end, earliest, finite_readings, readings
from stability.diagnosis.table import Table

_T = THRESHOLDS["fp16"]
_UNLEARNED = THRESHOLDS["learned"]["some"]
_GOES_ON = 3  # finite rows after a gradient that is not finite which show that its step was skipped
_FEW = 3  # readings of a log, below which it is not known whether a loss had grown
_FAR_FROM_0 = 1e-3  # share of its first value; a loss above it does not get to 0 in one step
_TINY_SCALE = 0.1  # a loss scale below it does not come from its calibration: gradients overflow almost unscaled
_VIOLENT = 100  # times the usual loss; a loss that was larger than this before it became infinite has exploded


def non_finite(signals: Table, validation: Table) -> Finding | None:
    """Detect the first loss or gradient that is not finite, and whether the data, fp16 or the optimizer caused it.

    In fp16 an overflow is no fault if a smaller loss scale mends it. Overflows that do not end are a fault.
    """
    return earliest((_first_non_finite(signals, 0), _endless_overflow(signals)))


def non_finite_at_the_end(signals: Table) -> Finding | None:
    """Return the finding on the last loss or gradient norm if it is not finite: since when it has not been.

    A training that went on with finite numbers has recovered: the step was skipped, as fp16's scaler does.
    """
    since = [row for name in ("loss", "grad_norm") if (row := _row_of_last_run(signals, name)) is not None]
    return _first_non_finite(signals, min(since)) if since else None


def count_non_finite(signals: Table) -> dict[str, str]:
    """Return, for the loss and the gradient norm, how many of the readings were NaN or infinite, in words.

    An infinite gradient norm alone is usual in fp16: its step was skipped.
    """
    counts = dict[str, str]()
    for name, what in (("loss", "losses"), ("grad_norm", "gradient norms")):
        _, values = readings(signals, name)
        for kind, bad in (("infinite", np.isinf(values)), ("non_finite", np.isnan(values))):
            if bad.any():
                counts[f"{kind} {what}"] = f"{bad.sum()} of {len(values)}"
    return counts


def reveal_masked(signals: Table, validation: Table) -> Table:
    """Return the signals with NaN for losses of exactly 0 in which a trainer hides a NaN.

    Losses of exactly 0 up to the end are NaN if others came before, and the gradient norm or the validation loss is
    NaN at the same time, or an input, or the last error rate is that of a model that has learned nothing. A loss that
    is memorized gets to 0 step by step. If it was far from 0 just before, the zeros are NaN if neither error rates nor
    gradient norms were recorded, or if validations show that the model has not changed since.
    """
    loss = finite_readings(signals, "loss")
    if loss.values.all() or not loss.values.any():
        return signals
    others = readings(signals, "grad_norm"), readings(signals, "input_max"), readings(validation, "loss")
    nan = np.concatenate([steps[np.isnan(values)] for steps, values in others])
    first = int(np.flatnonzero(loss.values)[-1]) + 1  # since there all are 0
    if first == len(loss.values):
        return signals
    since, end = int(loss.steps[first]), int(signals.steps[-1])
    rates = finite_readings(validation, "per").between(since, end)
    norms = finite_readings(signals, "grad_norm").between(since, end)
    hidden = nan.max(initial=-1) >= loss.steps[first - 1]
    if not hidden and len(rates):
        hidden = bool(rates[-1] >= _UNLEARNED) or (is_unchanged(validation, since) and _leaps_to_0(loss.values, first))
    elif not hidden:
        hidden = not len(norms) and _leaps_to_0(loss.values, first)
    if not hidden:
        return signals
    values = signals.values.copy()
    values[signals.steps >= loss.steps[first], signals.names.index("loss")] = np.nan
    return Table(signals.names, signals.steps, values, signals.measured)


def _leaps_to_0(loss: Floats, first: int) -> bool:
    """Whether a loss that is 0 since a reading was far from 0 before: from its start, and from what is rounded to 0."""
    before = loss[:first][-5:]
    digits = (10.0**-digits for digits in range(6) if np.allclose(before, np.round(before, digits), rtol=1e-6, atol=0))
    far = np.median(before) > max(_FAR_FROM_0 * loss[0], 10 * next(digits, 0))
    return len(loss) - first >= _GOES_ON and bool(far)


def is_unchanged(validation: Table, since: int) -> bool:
    """Return whether the last validation losses since a step are exactly the same: then the model no longer changes."""
    steps, losses = finite_readings(validation, "loss")
    later = losses[steps >= since][-2:]
    return len(later) > 1 and bool(later[0] == later[1])


def not_finite_parts(signals: Table, row: int) -> list[str]:
    """Return the parts of the model whose gradient norm was measured in a row of the table and is not finite."""
    return [name.removeprefix("grad_norm.") for name in _part_norms(signals) if _is_not_finite(signals, name)[row]]


def _row_of_last_run(signals: Table, name: str) -> int | None:
    """The row since which no reading is finite; None if the last one is."""
    bad = _is_not_finite(signals, name)
    rows = np.flatnonzero(signals.measured[:, signals.names.index(name)]) if name in signals.names else np.zeros(0, int)
    if not len(rows) or not bad[rows[-1]]:
        return None
    return int(rows[-count_at_end(bad[rows])])


def _went_on(bad: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """In which rows the training went on later: the updates of bad gradients there were skipped."""
    calm = np.convolve(~bad, np.ones(_GOES_ON), "valid") == _GOES_ON if len(bad) >= _GOES_ON else np.zeros(0, bool)
    last = int(np.flatnonzero(calm)[-1]) if calm.any() else 0  # the last row that begins a span without any
    return np.asarray(np.arange(len(bad)) < last)


def _first_non_finite(signals: Table, since: int) -> Finding | None:
    in_loss, in_norm = _is_not_finite(signals, "loss"), _is_not_finite(signals, "grad_norm")
    scale = _column(signals, "loss_scale", 1)
    bad = in_loss | (in_norm & (scale <= 1) & ~_went_on(in_loss | in_norm))
    bad[:since] = False
    if not bad.any():
        return None
    row = int(bad.argmax())
    step = int(signals.steps[row])
    name = "loss" if in_loss[row] else "grad_norm"
    largest = float(_column(signals, "input_max", 0)[row])
    if not np.isfinite(largest):
        return _bad_input(step, largest)
    count = float(_column(signals, "infeasible_targets", np.nan)[row])
    if name == "loss" and (count > 0 or (np.isnan(count) and _is_infinite_by_targets(signals, row))):
        return _infeasible_target(step, count)
    cause, advice = _why_non_finite(signals, row, name)
    return Finding(
        kind="non_finite",
        cause=cause,
        onset_step=step,
        detected_step=step,
        signal=name,
        value=float(signals[name][row]),
        expected="a finite number",
        advice=advice,
    )


def _bad_input(step: int, largest: float) -> Finding:
    return Finding(
        kind="bad_data",
        cause="non_finite_input",
        onset_step=step,
        detected_step=step,
        signal="input_max",
        value=largest,
        expected="finite inputs",
        advice=f"An input in the batch of step {step} is not finite. Find the utterance that it comes from, and repair "
        "it or leave it out.",
    )


def _is_infinite_by_targets(signals: Table, row: int) -> bool:
    """Whether a CTC loss is infinite though it was usual before: if the logits are finite, only targets explain it."""
    if signals["loss"][row] != np.inf or "blank_fraction" not in signals.names:
        return False
    past = finite_readings(signals, "loss").up_to(int(signals.steps[row]))
    return not len(past) or bool(past[-5:].max() <= _VIOLENT * np.median(past))


def _why_non_finite(signals: Table, row: int, name: str) -> tuple[str, str]:
    """Return cause and advice: what came before explains it better than where it shows."""
    step = int(signals.steps[row])
    if (advice := _infinite_update(signals, step)) is not None:
        return "precision", advice
    if (reason := why_exploded(signals, step, step)) is not None:
        return reason
    if (advice := _fallen_scale(signals, step)) is not None:
        return "precision", advice
    if _column(signals, "loss_scale", 1)[row] > 1:
        return "precision", "The loss overflowed in fp16: train in bf16 or fp32."
    before = len(finite_readings(signals, "loss").up_to(step))
    if name == "loss" and before < min(_FEW, step) and "input_max" not in signals.names:  # a log, not of each step
        return "no_evidence", (
            f"There are {before} readings of the loss before, which is too few to know whether it had grown. Log the "
            "first steps one by one, with the lr and the gradient norm."
        )
    return ("loss", _loss_advice(signals, row)) if name == "loss" else ("gradient", _backward_advice(signals, row))


def _infinite_update(signals: Table, step: int) -> str | None:
    """Return advice if the last measured update was not finite, though its gradient was: the optimizer divides by 0."""
    steps, sizes = readings(signals, "update_ratio")
    before = np.flatnonzero(steps < step)
    if not len(before) or np.isfinite(sizes[before[-1]]):
        return None
    return (
        f"The gradient of step {steps[before[-1]]} was finite, and its update was not, so the weights are "
        "not finite either: the optimizer divided by 0. In half precision an epsilon of 1e-8 is 0. Keep the weights "
        "and the optimizer's state in fp32 (autocast does), or set a larger epsilon. Start again from a checkpoint "
        "before that step."
    )


def _fallen_scale(signals: Table, step: int) -> str | None:
    """Return advice if the loss scale fell far below 1: gradients overflowed at each one, and small ones were lost."""
    scale = finite_readings(signals, "loss_scale").up_to(step)
    if not len(scale) or not 0 <= scale[-1] < _TINY_SCALE <= scale.max():
        return None
    return (
        f"The loss scale fell from {scale.max():.4g} to {scale[-1]:.2g} before, as gradients overflowed in fp16 again "
        "and again. Train in bf16 or fp32, or lower the lr if they overflow there, too."
    )


def _loss_advice(signals: Table, row: int) -> str:
    loss = finite_readings(signals, "loss")
    step = int(signals.steps[row])
    gap = step - int(loss.up_to(step).size and loss.steps[np.searchsorted(loss.steps, step) - 1])
    inputs = "The inputs are finite and nothing" if "input_max" in signals.names else "Nothing"
    before = "" if gap <= 1 or not len(loss.up_to(step)) else f" at the last reading, {gap} steps before"
    return (
        f"{inputs} had grown{before}: look in the loss itself for a log of 0 or a division by 0, and at the inputs "
        "and the lengths of that batch."
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
        "0, or takes the root or the logarithm of 0."
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

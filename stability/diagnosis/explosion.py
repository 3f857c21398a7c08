"""Explosions: a loss, weights, updates or gradients that grew to a multiple of their own past and stay there."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stability.diagnosis.finding import (
    THRESHOLDS,
    Finding,
    Floats,
    Steps,
    between,
    finite,
    of_weights,
    running_median,
    until,
)
from stability.diagnosis.table import Table

_T = THRESHOLDS["exploded"]
_SMOOTH = int(_T["smooth"])
_PAST = 60  # points that make a signal's own past
_BACK = 10  # measurements of the weights' norm to look back
_COMMON = 0.01  # size of an update over size of the weights, where nothing was measured before
_POINTS = 1000  # of a longer run, gradient norms are looked at in groups


@dataclass(frozen=True)
class _Sign:
    signal: str
    onset: int
    detected: int
    value: float
    usual: float


def exploded(signals: Table, validation: Table) -> Finding | None:
    """The first sign of an explosion, and what made it."""
    signs = (_lost_loss, _grown_weights, _large_updates, _grown_gradients, _heavy_batch)
    found = [sign for look in signs if (sign := look(signals)) is not None and not _shrinks(signals, sign.detected)]
    if not found:
        return None
    first = min(found, key=lambda sign: sign.detected)
    from_start = first.onset <= signals.steps[0]
    grew = f"is {first.value:.3g} from the start" if from_start else f"grew from {first.usual:.3g} to {first.value:.3g}"
    cause, advice = why_exploded(signals, first.onset, first.detected) or (
        "unknown",
        f"{first.signal} {grew} and stays there: lower the lr, or warm up longer.",
    )
    expected = f"about {first.usual:.3g}" + ("" if from_start else ", as before")
    return Finding("exploded", cause, first.onset, first.detected, first.signal, first.value, expected, advice)


def recovered(signals: Table, finding: Finding) -> bool:
    """Whether by the end the loss has come back to its best, and what had grown to its size."""
    _, loss = finite(signals, "loss")
    if len(loss) <= 2 * _SMOOTH:
        return False
    smooth = running_median(loss, _SMOOTH)
    start, best, now = np.median(loss[:_SMOOTH]), smooth.min(), np.median(loss[-2 * _SMOOTH :])
    grown = until(finite(signals, finding.signal), int(signals.steps[-1]))[-_SMOOTH:]
    if finding.signal == "weight_norm" and np.median(grown) > 0.75 * finding.value:
        return False
    return bool(now < max(1.25 * best, best + 0.1 * (start - best)))


def why_exploded(signals: Table, onset: int, detected: int) -> tuple[str, str] | None:
    """Cause and advice, from what the optimiser did around the onset; None if it did nothing unusual.

    A rate that is too high makes updates that are large for the weights; one batch that counts too much makes one
    gradient that is; and where neither was so, something else drove the weights or the data away.
    """
    lr, update = finite(signals, "lr"), finite(signals, "update_ratio")
    before, now = until(lr, onset - 8)[-1:], until(lr, detected)[-1:]
    largest = between(update, onset - 15, detected).max(initial=0)
    past = until(update, onset - 15)[-_BACK:]
    usual = float(np.median(np.minimum(past, 0.02))) if len(past) else _COMMON
    raised = bool(len(before) and len(now) and now[0] > 3 * before[0] > 0)
    spike = None if raised else _spike(finite(signals, "grad_norm"), onset - 10, detected)
    if spike is not None:
        step, norm, common = spike
        return "bad_batch", (
            f"The batch of step {step} had a gradient norm of {norm:.3g}, {_plain(norm / common, 3)} times the usual "
            f"{common:.3g}{_moments_after(signals, step, detected)}: look at that batch, and clip at some "
            f"{_plain(3 * common, 1)}."
        )
    if raised and largest <= 3 * usual:  # not measured yet since then
        return (
            "rate_too_high",
            f"The lr was raised from {before[0]:.3g} to {now[0]:.3g}, and is too large since: lower it.",
        )
    if len(now) and (largest >= _T["update"] or raised):
        rate = now[0] * usual / largest
        rise = f", raised from {before[0]:.3g}," if raised else ""
        before_that = float(np.median(past)) if len(past) else 0.0
        compared = f"against {of_weights(before_that)} before" if before_that > 1e-4 else "from the start"
        mend = f"An lr of {rate:.1g} would make steps of {100 * usual:.2g}%" if rate > 0 else "Lower it"
        return "rate_too_high", (
            f"Updates are {of_weights(largest)} a step at lr {now[0]:.3g}{rise} {compared}: "
            f"too large a rate for this loss surface. {mend}{_clip_advice(signals, detected)}."
        )
    weights = finite(signals, "weight_norm")
    former, present = until(weights, onset - 10)[-1:], until(weights, detected)[-1:]
    if not len(until(update, detected)):
        return None
    if len(former) and len(present) and present[0] > 1.5 * former[0]:
        return "drift", (
            f"The weights grew from {former[0]:.3g} to {present[0]:.3g}, which updates of {of_weights(largest)} a step "
            "do not account for: something beside the optimiser changes them."
        )
    if len(until(finite(signals, "loss"), onset)) > _SMOOTH and onset < detected:
        return "drift", (
            f"The loss rises step by step, though updates are no larger than before ({of_weights(largest)}): the "
            "gradient leads uphill or the data have changed; look at the sign of the loss and at the newest batches."
        )
    return None


def _shrinks(signals: Table, step: int) -> bool:
    """Whether the weights are being taken away, as by their decay: large updates that are no explosion."""
    norms = until(finite(signals, "weight_norm"), step)
    return bool(len(norms) and norms[-1] < 0.95 * norms[-2 * _BACK :].max())


def _lost_loss(signals: Table) -> _Sign | None:
    """A loss that lost what it had won, or rose far above its start."""
    steps, loss = finite(signals, "loss")
    if len(loss) < 2 * _SMOOTH:
        return None
    smooth = running_median(loss, _SMOOTH)
    best = np.minimum.accumulate(smooth)
    start = float(np.median(loss[:_SMOOTH]))
    won = start - best
    # A loss that may be negative, as a log-likelihood, has no size to compare with.
    sized = (start > 0) & (best >= 0)
    lost = (won > 0.2 * start) & (smooth - best > _T["lost"] * won) & (smooth > _T["worse"] * best)
    lost |= smooth > _T["above_start"] * np.maximum(start, best)
    lost &= sized
    drive = _drive(signals)
    for row in np.flatnonzero(lost):
        if _is_driven(drive, int(steps[row])) or _does_not_fall(steps, smooth, lost, int(row)):
            near = np.flatnonzero(smooth[:row] <= best[row] + 0.25 * (smooth[row] - best[row]))
            onset = int(near[-1]) + 1 if len(near) else 0
            # The median is late by half its width.
            onset = max(0, onset - _SMOOTH // 2)
            return _Sign("loss", int(steps[onset]), int(steps[row]), float(smooth[row]), float(best[row]))
    return None


def _drive(signals: Table) -> tuple[tuple[Steps, Floats], ...]:
    """What tells whether the optimiser makes large steps: sizes of updates, lr, gradient norms."""
    return finite(signals, "update_ratio"), finite(signals, "lr"), finite(signals, "grad_norm")


def _is_driven(drive: tuple[tuple[Steps, Floats], ...], step: int) -> bool:
    """Whether the optimiser has just made large steps, or, where its updates were not measured, may have."""
    update, lr, norm = drive
    if not len(until(update, step)):
        return True
    recent, past = between(update, step - 12, step), until(update, step - 13)[-_BACK:]
    usual = float(np.median(past)) if len(past) else 0.0
    if len(recent) and recent.max() > max(_T["driven"], _T["driven_more"] * usual):
        return True
    before, now = until(lr, step - 12)[-1:], until(lr, step)[-1:]
    if len(before) and len(now) and now[0] > 3 * before[0]:
        return True
    return _spike(norm, step - 10, step) is not None


def _does_not_fall(steps: Steps, smooth: Floats, lost: np.ndarray, row: int) -> bool:
    """Whether the loss has been lost for long and is not on its way back."""
    since = row - int(np.argmin(lost[row::-1])) + 1 if not lost[: row + 1].all() else 0
    if steps[row] - steps[since] < _T["calm"] or row - since < _SMOOTH:
        return False
    half = (since + row) // 2
    return bool(np.median(smooth[half : row + 1]) > 0.95 * np.median(smooth[since:half]))


def _grown_weights(signals: Table) -> _Sign | None:
    steps, norms = finite(signals, "weight_norm")
    if len(norms) < 2:
        return None
    loss = finite(signals, "loss")
    update = finite(signals, "update_ratio")
    padded = np.concatenate([np.full(_BACK, norms[0]), norms[:-1]])
    least = sliding_window_view(padded, _BACK).min(axis=1)
    for row in np.flatnonzero((norms > _T["weights"] * least) & (least > 0)):
        past = norms[max(0, row - _BACK) : row]
        first = int(steps[max(0, int(row) - _BACK)])
        sizes = between(update, first, int(steps[row]))
        explained = float(sizes.mean()) * (int(steps[row]) - first) if len(sizes) else 0.0
        # What the updates account for, the detectors of updates and of the loss judge.
        if explained < np.log(norms[row] / past.min()) and not _falls(loss, int(steps[row])):
            onset = row - int(np.argmin(past[::-1] > 1.15 * past.min())) if (past > 1.15 * past.min()).any() else row
            first = int(steps[onset - 1]) + 1
            return _Sign("weight_norm", first, int(steps[row]), float(norms[row]), float(past.min()))
    return None


def _large_updates(signals: Table) -> _Sign | None:
    steps, sizes = finite(signals, "update_ratio")
    large = sizes > _T["update"]
    loss = finite(signals, "loss")
    for row in np.flatnonzero(large[1:] & large[:-1]) + 1:
        if not _falls(loss, int(steps[row])):
            usual = float(np.median(sizes[: row - 1])) if row > 1 else _COMMON
            onset = int(steps[row - 2]) + 1 if row > 1 else int(steps[0])
            return _Sign("update_ratio", onset, int(steps[row]), float(sizes[row]), usual)
    return None


def _grown_gradients(signals: Table) -> _Sign | None:
    """A gradient norm that grew to a multiple of its own past and stayed there, while the loss got no better.

    The points may be any number of steps apart; of a long run they are medians of some steps.
    """
    steps, norms = finite(signals, "grad_norm")
    if len(steps) < 2 * _SMOOTH:
        return None
    stride = -(-len(steps) // _POINTS)
    whole = slice(len(steps) % stride, None)
    steps, norms = steps[whole][stride - 1 :: stride], np.median(norms[whole].reshape(-1, stride), axis=1)
    smooth, past = running_median(norms, _SMOOTH), running_median(norms, _PAST)
    loss, drive = finite(signals, "loss"), _drive(signals)
    before = np.concatenate([np.full(_SMOOTH, np.inf), past[:-_SMOOTH]])
    for row in np.flatnonzero((smooth > _T["norm"] * before) & (before > 0)):
        if row < 2 * _SMOOTH - 1 or _improved(loss, int(steps[row - _SMOOTH]), int(steps[row])):
            continue
        if not _is_driven(drive, int(steps[row])):
            continue
        usual = float(before[row])
        high = np.flatnonzero(norms[: row + 1] > _T["norm"] * usual)
        onset = int(high[high > row - 2 * _SMOOTH][0])
        return _Sign("grad_norm", int(steps[onset]), int(steps[row]), float(smooth[row]), usual)
    return None


def _heavy_batch(signals: Table) -> _Sign | None:
    """One batch whose gradient filled the second moments, so that hardly any step is left to those after it."""
    lr, effective = finite(signals, "lr"), finite(signals, "effective_lr")
    steps, values = effective
    if len(steps) < 3 or not len(lr[0]):
        return None
    loss = finite(signals, "loss")
    ratio = values / np.maximum(np.interp(steps, *lr), 1e-30)
    usual = np.concatenate([[0.0], running_median(ratio, 3)[:-1]])
    for row in np.flatnonzero(ratio < _T["poisoned"] * usual):
        if row >= 2:
            spike = _spike(finite(signals, "grad_norm"), int(steps[row - 1]), int(steps[row]))
            if spike is None:
                continue
            step, norm, common = spike
            # It is the harm that counts: as long as the loss comes down all the same, there is none.
            late = int(steps[min(int(np.searchsorted(steps, step + _T["calm"])), len(steps) - 1)])
            before, after = until(loss, step - 1)[-2 * _SMOOTH :], between(loss, step + 1, late)[-2 * _SMOOTH :]
            waited = late >= step + _T["calm"] and len(before) and len(after)
            if waited and np.median(after) > 0.97 * np.median(before):
                return _Sign("grad_norm", step, late, norm, common)
    return None


def _spike(norm: tuple[Steps, Floats], first: int, last: int) -> tuple[int, float, float] | None:
    """Step, norm and usual norm of one gradient between two steps that stands far out, and after which norms fell."""
    steps, norms = norm
    low, high = int(np.searchsorted(steps, first)), int(np.searchsorted(steps, last, "right"))
    if high - low < 1 or low < 3:
        return None
    row = low + int(norms[low:high].argmax())
    usual = float(np.median(norms[max(0, row - _PAST) : row])) if row else np.inf
    after = norms[row + 1 : high]
    alone = not len(after) or float(np.median(after)) < 0.25 * norms[row]
    if not usual or norms[row] < _T["spike"] * usual or not alone:
        return None
    return int(steps[row]), float(norms[row]), usual


def _plain(value: float, digits: int) -> str:
    """Rounded to some digits, and written without an exponent where that is readable."""
    return f"{float(f'{value:.{digits}g}'):g}"


def _moments_after(signals: Table, step: int, now: int) -> str:
    effective = finite(signals, "effective_lr")
    before, after = until(effective, step)[-1:], between(effective, step + 1, min(step + 12, now))[:1]
    if not len(before) or not len(after) or after[0] > 0.7 * before[0]:
        return ""
    return (
        f"; it has filled the second moments, so the effective lr fell from {before[0]:.2g} to {after[0]:.2g} for long"
    )


def _clip_advice(signals: Table, step: int) -> str:
    """A word on the clip, if what was applied is what was measured."""
    norm, applied = until(finite(signals, "grad_norm"), step), until(finite(signals, "applied_norm"), step)
    return "; nothing is clipped" if len(norm) and len(applied) and applied.max() > 0.9 * norm.max() else ""


def _falls(loss: tuple[Steps, Floats], step: int) -> bool:
    """Whether the loss is lower than some steps ago: then nothing that grows does harm."""
    recent = until(loss, step)[-4 * _SMOOTH :]
    return len(recent) > _SMOOTH and bool(np.median(recent[-_SMOOTH:]) < 0.95 * np.median(recent[: 2 * _SMOOTH]))


def _improved(loss: tuple[Steps, Floats], step: int, now: int) -> bool:
    """Whether the loss after that step came to lie below where it was: then larger gradients do no harm."""
    before, after = until(loss, step)[-_SMOOTH:], between(loss, step + 1, now)
    return bool(len(before) and len(after) and np.median(after) < np.median(before))

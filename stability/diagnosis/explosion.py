"""Explosions: the loss, the weights, the updates or the gradients grow to a multiple of their past and stay there."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from stability.diagnosis.finding import (
    THRESHOLDS,
    Finding,
    Floats,
    Series,
    Steps,
    count_at_end,
    finite_readings,
    noise_of,
    running_median,
    update_in_words,
)
from stability.diagnosis.table import Table

_T = THRESHOLDS["exploded"]
_SMOOTH = int(_T["smooth"])
_PAST = 60  # readings of a signal that are its past
_LONG_PAST = 100  # readings of the gradient norm that are its past while it is watched whether growth lasts
_BACK = 10  # readings of what is measured every 10th step that are its past
_GREW = 1.5  # times their former norm; weights that are so much larger have grown
_TYPICAL_UPDATE = 0.01  # size of an update over that of the weights, if none was measured before
_EVERY_STEP = 5  # steps: readings at most so far apart show single batches
_AFTER = 20  # steps from the onset in which updates may have caused it
_SPIKE_NOISES = 6.0  # standard deviations of the noise of the gradient norm that a spike is above it
_DIED = 0.1  # of the median of all norms so far; the usual norm is not taken to be smaller
_RAMP = 5.0  # times the usual norm; a gradient after one that was so large is part of a ramp
_OFTEN = 10  # steps: updates that are measured at least so often are known
_FEW = 3  # readings of the loss; their median is not that of a single batch
_SPARSE = 10  # steps: between readings at least so far apart a loss that leaps at the start has time to come back
_NOISE_OF = 200  # readings of the loss from which its noise is known
_MOST_POINTS = 1000  # of gradient norms: those of a longer run are reduced to medians of groups


@dataclass(frozen=True)
class _Sign:
    """A signal that exploded: since which step, and its value at the detected step against its usual one."""

    signal: str
    onset: int
    detected: int
    value: float
    usual: float


def exploded(signals: Table, validation: Table) -> Finding | None:
    """Detect an explosion by its first sign, and find its cause."""
    signs = (detect(signals) for detect in (_risen_loss, _grown_weights, _large_updates, _grown_gradients, _bad_batch))
    found = [sign for sign in signs if sign is not None and not weights_shrink(signals, sign.detected)]
    if not found:
        return None
    first = min(found, key=lambda sign: sign.detected)
    from_start = first.onset <= signals.steps[0]
    grew = f"is {first.value:.3g} from the start" if from_start else f"grew from {first.usual:.3g} to {first.value:.3g}"
    cause, advice = why_grew(signals, first.onset, first.detected)
    return Finding(
        kind="exploded",
        cause=cause,
        onset_step=first.onset,
        detected_step=first.detected,
        signal=first.signal,
        value=first.value,
        expected=f"about {first.usual:.3g}{'' if from_start else ', as before'}",
        advice=f"The signal {first.signal} {grew}, and does not come down. {advice}" if cause == "unknown" else advice,
    )


def recovered(signals: Table, finding: Finding) -> bool:
    """Return whether at the end the loss is near its best again, and weights that had grown are small again."""
    _, loss = finite_readings(signals, "loss")
    if len(loss) <= 2 * _SMOOTH:
        return False
    smooth = running_median(loss, _SMOOTH)
    start, best, now = min(loss[0], np.median(loss[:_SMOOTH])), smooth.min(), np.median(loss[-2 * _SMOOTH :])
    grown = finite_readings(signals, finding.signal).up_to(int(signals.steps[-1]))[-_SMOOTH:]
    if finding.signal == "weight_norm" and np.median(grown) > 0.75 * finding.value:
        return False
    return bool(now < max(1.25 * best, best + 0.1 * (start - best)))


def why_exploded(signals: Table, onset: int, detected: int) -> tuple[str, str] | None:
    """Find the cause of an explosion in what the optimizer did around its onset.

    If the learning rate is too high, updates are large for the weights. If one batch is to blame, one gradient is
    large. If neither is large, something else changed the weights, the data or the sign of the gradient.

    Returns:
        Cause and advice; None if there is no evidence for any cause.
    """
    raised_from = _rate_before_rise(signals, onset, detected)
    reason = None if raised_from else _why_one_batch(signals, onset, detected)
    reason = reason or _why_rate(signals, onset, detected, raised_from)
    return reason or _why_drift(signals, onset, detected)


def _why_one_batch(signals: Table, onset: int, detected: int) -> tuple[str, str] | None:
    """Cause and advice if the gradient of one batch is large; else None."""
    norms = finite_readings(signals, "grad_norm")
    spike = _find_spike(norms, onset - 10, min(detected, onset + max(_AFTER, norms.distance(onset))))
    if spike is None or _had_grown(signals, spike[0]) or _is_beyond_adam(signals, spike[0], detected):
        return None
    step, norm, common = spike
    return "bad_batch", (
        f"The batch of step {step} has a gradient norm of {norm:.3g}, {_rounded(norm / common, 3)} times the usual "
        f"{common:.3g}.{_second_moments_advice(signals, step, detected)} Look at that batch, and clip gradients at "
        f"about {_rounded(3 * common, 1)}."
    )


def _had_grown(signals: Table, step: int) -> bool:
    """Whether the weights or the loss had grown before a step: then a large gradient there only follows from that."""
    weights = finite_readings(signals, "weight_norm").up_to(step)[-_BACK:]
    if len(weights) > 1 and weights[-1] > _GREW * weights.min():
        return True
    loss = finite_readings(signals, "loss").up_to(step - 1)
    return _has_risen(loss[-_PAST:], _SMOOTH) or _has_risen(loss, 4 * _SMOOTH)


def _has_risen(loss: Floats, width: int) -> bool:
    """Whether the loss is above its best median of so many readings by more than its noise."""
    if len(loss) < 2 * _SMOOTH:
        return False
    best = float(running_median(loss, width).min())
    return _is_above_noise(loss, float(np.median(loss[-_SMOOTH:])), _T["worse"] * best)


def _is_beyond_adam(signals: Table, step: int, detected: int) -> bool:
    """Whether the weights grew more at a step than one gradient moves them if it is divided by its second moment."""
    weights = finite_readings(signals, "weight_norm")
    before, after = weights.up_to(step)[-1:], weights.between(step, detected)[:1]
    divided = len(finite_readings(signals, "effective_lr").up_to(step)) > 0
    return divided and len(before) > 0 and len(after) > 0 and bool(after[0] > _GREW * before[0])


def _why_rate(signals: Table, onset: int, detected: int, raised_from: float) -> tuple[str, str] | None:
    """Cause and advice if updates are large for the weights, or the learning rate has risen; else None."""
    now = finite_readings(signals, "lr").up_to(detected)[-1:]
    largest, past = _largest_update(signals, onset, detected), _updates_before(signals, onset)
    usual = float(np.median(np.minimum(past, 0.02))) if len(past) else _TYPICAL_UPDATE
    if not len(now) or not (largest >= _T["update"] or raised_from):
        return None
    if raised_from and largest <= 3 * usual:  # no update has been measured since then
        return (
            "rate_too_high",
            f"The lr rose from {raised_from:.3g} to {now[0]:.3g}, and has been too high since then. Lower it.",
        )
    rate = now[0] * usual / largest
    rise = f", raised from {raised_from:.3g}" if raised_from else ""
    earlier = float(np.median(past)) if len(past) else 0.0
    compared = f", compared with {update_in_words(earlier)} before" if earlier > 1e-4 else ", from the start"
    mend = f"With an lr of {rate:.1g} they would be {100 * usual:.2g}%" if rate > 0 else "Lower it"
    return "rate_too_high", (
        f"Updates are {update_in_words(largest)} at an lr of {now[0]:.3g}{rise}{compared}: the lr is too high. "
        f"{mend}.{_clip_advice(signals, detected)}"
    )


def _why_drift(signals: Table, onset: int, detected: int) -> tuple[str, str] | None:
    """Cause and advice if the weights or the loss grew, and the updates do not explain it; else None."""
    update = finite_readings(signals, "update_ratio")
    # If updates were seldom measured, large ones may have been missed.
    if not len(update.up_to(detected)) or update.distance(detected) > _OFTEN:
        return None
    largest, weights = _largest_update(signals, onset, detected), finite_readings(signals, "weight_norm")
    former, present = weights.up_to(onset - 10)[-1:], weights.up_to(detected)[-1:]
    if len(former) and len(present) and present[0] > _GREW * former[0]:
        return "drift", (
            f"The weights grew from {former[0]:.3g} to {present[0]:.3g}. Updates of {update_in_words(largest)} do not "
            "explain that: something other than the optimizer changes the weights, or the optimizer lost its state, as "
            "at a restart."
        )
    loss = finite_readings(signals, "loss").up_to(onset)
    if len(loss) > _SMOOTH and onset < detected and len(update.between(onset, detected)):
        return "drift", (
            f"The loss rises step by step, but updates are no larger than before ({update_in_words(largest)}). Either "
            "the loss is maximized or the data have changed: look at the sign of the loss and at the newest batches."
        )
    return None


def _largest_update(signals: Table, onset: int, detected: int) -> float:
    """The largest update around the onset. What the updates grew to later is no cause."""
    update = finite_readings(signals, "update_ratio")
    last = min(detected, onset + max(_AFTER, update.distance(onset)))
    return float(update.between(_before(update, onset), last).max(initial=0))


def _updates_before(signals: Table, onset: int) -> Floats:
    update = finite_readings(signals, "update_ratio")
    return update.up_to(_before(update, onset))[-_BACK:]


def _before(update: Series, onset: int) -> int:
    """A step so long before the onset that an update has been measured between them."""
    return onset - max(15, update.distance(onset))


def _rate_before_rise(signals: Table, onset: int, step: int) -> float:
    """The learning rate before it rose a lot, at the onset or since the loss was at its best; 0 if it did not."""
    lr = finite_readings(signals, "lr")
    now = lr.up_to(step)[-1:]
    steps, loss = finite_readings(signals, "loss")
    losses = loss[: np.searchsorted(steps, step, "right")]
    places = [(onset - max(8, lr.distance(onset)), _T["raised"])]
    rising = bool((np.diff(lr.up_to(step)) > 0).all())  # a warm-up, which alone shows nothing
    if rising and not len(finite_readings(signals, "update_ratio").steps) and not _has_risen(losses, _SMOOTH):
        return 0.0
    if len(losses) >= 2 * _SMOOTH:
        places.append((int(steps[running_median(losses, _SMOOTH).argmin()]), _T["climbed"]))
    for place, times in places:
        before = lr.up_to(place)[-1:]
        if len(before) and len(now) and now[0] > times * before[0] > 0:
            return float(before[0])
    return 0.0


def why_grew(signals: Table, onset: int, detected: int) -> tuple[str, str]:
    """Find the cause of growth of the loss: as `why_exploded`, or else the learning rate.

    Where no update was measured, the learning rate is to blame if it rose, or was near its largest value so far.

    Returns:
        Cause and advice. The cause is `unknown` if there is no evidence for any.
    """
    reason = why_exploded(signals, onset, detected) or _why_by_rate_alone(signals, onset, detected)
    if reason is not None:
        return reason
    series = {"the lr": "lr", "the size of the updates": "update_ratio"}
    missing = [what for what, name in series.items() if not len(finite_readings(signals, name).steps)]
    log = f", and log {' and '.join(missing)}" if missing else ""
    return "unknown", f"What was recorded does not show why. Lower the lr, or warm up for longer{log}."


def _why_by_rate_alone(signals: Table, onset: int, detected: int) -> tuple[str, str] | None:
    lr = finite_readings(signals, "lr")
    rates = lr.up_to(detected)
    updates = finite_readings(signals, "update_ratio").up_to(detected)
    if not len(rates) or rates[-1] <= 0 or updates.any():  # an update of 0, at the start of a warm-up, shows nothing
        return None
    calm = lr.up_to(onset)[-2 * _BACK :]
    if len(calm) and rates[-1] > 1.2 * calm.min() > 0:
        return "rate_too_high", (
            f"The lr rose from {calm.min():.3g} to {rates[-1]:.3g} while the loss grew: the lr is too high. Lower it, "
            "or warm up for longer."
        )
    steps, loss = finite_readings(signals, "loss")
    level = running_median(loss[steps <= detected], _FEW)  # a single batch may be above its start by chance
    above = level.max(initial=0) > _T["above"] * loss[:1].max(initial=0)
    if rates[-1] < 0.5 * rates.max() or not above:  # larger rates did no harm, or the data may have changed as well
        return None
    return "rate_too_high", (
        f"The loss grew at an lr of {rates[-1]:.3g}, the largest so far. Lower the lr, or warm up for longer. The size "
        "of the updates was not recorded there: it would show whether the lr is the reason."
    )


def weights_shrink(signals: Table, step: int) -> bool:
    """Return whether the weights shrink, as by weight decay. Then updates are large, but it is no explosion."""
    norms = finite_readings(signals, "weight_norm").up_to(step)[-2 * _BACK :]
    return len(norms) > 0 and bool(norms[-1] < 0.95 * norms.max() and norms.max() < 2 * norms[0])


def _risen_loss(signals: Table) -> _Sign | None:
    """A loss that lost much of what it had gained, or rose far above its start."""
    series = finite_readings(signals, "loss")
    steps, loss = series
    if len(loss) < 3:
        return None
    # Between readings that are far apart, a loss that leapt at the start has had time to come down again.
    sparse = series.distance(int(steps[2])) >= _SPARSE
    smooth = running_median(loss, _SMOOTH)
    # Of many readings the best few are luck.
    best = np.minimum.accumulate(smooth if sparse else running_median(loss, 4 * _SMOOTH))
    # A loss that leaps at once is no measure of where it began.
    leapt = loss[:_SMOOTH].max() > _T["far"] * loss[0] > 0
    start = float(loss[0] if sparse or leapt else np.median(loss[:_SMOOTH]))
    optimizer = _read_optimizer(signals)
    gained = start - best
    lost = (gained > 0.2 * start) & (smooth - best > _T["lost"] * gained) & (smooth > _T["worse"] * best)
    lost |= smooth > _T["above_start"] * np.maximum(start, best)
    high = lost.copy()
    lost[: 2 if sparse else 2 * _SMOOTH - 1] = False
    lost &= (start > 0) & (best >= 0)  # a ratio of losses that may be negative, as of log-likelihoods, says nothing
    for row in np.flatnonzero(lost):
        if not _is_above_noise(loss[: row + 1], float(smooth[row]), float(best[row])):
            continue
        # In the first steps a loss may also rise with the length of the utterances.
        if row < _PAST and smooth[row] < _T["far"] * start and not _may_have_stepped_far(optimizer, int(steps[row])):
            continue
        far = smooth[row] > _T["far"] * max(start, best[row])
        if far and not sparse and _largest_update(signals, int(steps[row]), int(steps[row])) < _T["driven"]:
            far = _does_not_fall(loss, high, int(row))
        if far or _stays_lost(steps, smooth, lost, int(row)):
            near = np.flatnonzero(smooth[:row] <= best[row] + 0.25 * (smooth[row] - best[row]))
            onset = int(near[-1]) + 1 if len(near) else 0
            onset = max(0, onset - _SMOOTH // 2)  # the median is late by half its width
            return _Sign(
                signal="loss",
                onset=int(steps[onset]),
                detected=int(steps[row]),
                value=float(smooth[row]),
                usual=float(best[row]),
            )
    return None


def _is_above_noise(loss: Floats, value: float, usual: float) -> bool:
    """Whether the value is larger than the usual one by more than the noise of the loss explains."""
    recent = loss[-_NOISE_OF:]
    noise = noise_of(np.log(recent[recent > 0]))
    least = _T["early"] if len(loss) < 2 * _SMOOTH else 1.0
    return value > usual * max(least, float(np.exp(_T["noises"] * noise)))


class _Optimizer(NamedTuple):
    """The signals that show whether the optimizer makes large updates."""

    update: Series
    lr: Series
    grad_norm: Series


def _read_optimizer(signals: Table) -> _Optimizer:
    return _Optimizer(*(finite_readings(signals, name) for name in ("update_ratio", "lr", "grad_norm")))


def _may_have_stepped_far(optimizer: _Optimizer, step: int) -> bool:
    """Whether the optimizer has just made large updates. If updates were not measured, it may have."""
    update, lr, norm = optimizer
    if not len(update.up_to(step)):
        return True
    window = max(12, 2 * update.distance(step))
    recent, past = update.between(step - window, step), update.up_to(step - window - 1)[-_BACK:]
    usual = float(np.median(past)) if len(past) else 0.0
    if len(recent) and recent.max() > max(_T["driven"], _T["driven_more"] * usual):
        return True
    before, now = lr.up_to(step - window)[-1:], lr.up_to(step)[-1:]
    if not len(recent) and len(before) and len(now) and now[0] > 3 * before[0]:
        return True
    return _find_spike(norm, step - 10, step) is not None


def _does_not_fall(loss: Floats, high: NDArray[np.bool_], row: int) -> bool:
    """Whether the loss does not come down since it has been high. If a term was added to it, it comes down at once."""
    since = loss[row + 1 - count_at_end(high[: row + 1]) : row + 1]
    half = len(since) // 2
    return len(since) >= 2 * _BACK or (half > 1 and bool(np.median(since[half:]) >= np.median(since[:half])))


def _stays_lost(steps: Steps, smooth: Floats, lost: NDArray[np.bool_], row: int) -> bool:
    """Whether the loss has been lost for long, and is not coming down again."""
    since = row + 1 - count_at_end(lost[: row + 1])
    fewest = _SMOOTH if steps[row] - steps[row - 1] < _SPARSE else 1
    if steps[row] - steps[since] < _T["calm"] or row - since < fewest:
        return False
    half = (since + row + 1) // 2
    return bool(np.median(smooth[half : row + 1]) > 0.95 * np.median(smooth[since:half]))


def _grown_weights(signals: Table) -> _Sign | None:
    """Weights that grew more than their updates explain, while the loss does not fall."""
    steps, norms = finite_readings(signals, "weight_norm")
    if len(norms) < 2:
        return None
    loss = finite_readings(signals, "loss")
    update = finite_readings(signals, "update_ratio")
    padded = np.concatenate([np.full(_BACK, norms[0]), norms[:-1]])
    least = sliding_window_view(padded, _BACK).min(axis=1)
    for row in np.flatnonzero((norms > _T["weights"] * least) & (least > 0)):
        past = norms[max(0, row - _BACK) : row]
        first = int(steps[max(0, int(row) - _BACK)])
        sizes = update.between(first, int(steps[row]))
        explained = float(sizes.mean()) * (int(steps[row]) - first) if len(sizes) else 0.0
        # Growth that the updates explain is left to the detectors of updates and of the loss.
        if explained < np.log(norms[row] / past.min()) and not _loss_falls(loss, int(steps[row])):
            onset = row - count_at_end(past > 1.15 * past.min())
            return _Sign(
                signal="weight_norm",
                onset=int(steps[onset - 1]) + 1,
                detected=int(steps[row]),
                value=float(norms[row]),
                usual=float(past.min()),
            )
    return None


def _large_updates(signals: Table) -> _Sign | None:
    """Updates that are larger than any training bears for long, while the loss does not fall."""
    steps, sizes = finite_readings(signals, "update_ratio")
    loss = finite_readings(signals, "loss")
    if not finite_readings(signals, "weight_norm").values[:1].all():
        return None  # whatever is added to weights of 0 is large for them
    large = sizes > _T["update"]
    since = _starts(large)
    for row in np.flatnonzero(large & (since < np.arange(len(sizes)))):
        first = int(since[row])
        if steps[row] - steps[first] >= _T["calm"] - _SPARSE and not _loss_falls(loss, int(steps[row])):
            return _Sign(
                signal="update_ratio",
                onset=int(steps[first]),
                detected=int(steps[row]),
                value=float(sizes[row]),
                usual=float(np.median(sizes[:first])) if first else _TYPICAL_UPDATE,
            )
    return None


def _grown_gradients(signals: Table) -> _Sign | None:
    """A gradient norm that grew to a multiple of its past and stayed there, while the loss got no better.

    The readings may be any number of steps apart. In a long run they are reduced to medians of a few steps each.
    """
    steps, norms = finite_readings(signals, "grad_norm")
    if len(steps) < 2 * _SMOOTH:
        return None
    stride = -(-len(steps) // _MOST_POINTS)
    whole = slice(len(steps) % stride, None)
    steps, norms = steps[whole][stride - 1 :: stride], np.median(norms[whole].reshape(-1, stride), axis=1)
    smooth, past = running_median(norms, _SMOOTH), running_median(norms, _LONG_PAST)
    loss, optimizer = finite_readings(signals, "loss"), _read_optimizer(signals)
    before = np.concatenate([np.full(_SMOOTH, np.inf), past[:-_SMOOTH]])
    grown = (smooth > _T["norm"] * before) & (before > 0)
    grown[: 2 * _SMOOTH - 1] = False
    since = _starts(grown)
    for row in np.flatnonzero(grown):
        first = int(since[row])
        lasts = steps[row] - steps[first] >= _T["calm"] and row > first
        if not lasts or not _loss_is_hurt(loss, int(steps[max(0, first - _SMOOTH)]), int(steps[row])):
            continue
        if not _is_above_noise(norms[: row + 1], float(smooth[row]), float(before[first])):
            continue
        if not _may_have_stepped_far(optimizer, int(steps[row])):
            continue
        usual = float(before[first])
        high = np.flatnonzero(norms[: first + 1] > _T["norm"] * usual)
        onset = int(high[high > first - 2 * _SMOOTH][0])
        return _Sign(
            signal="grad_norm",
            onset=int(steps[onset]),
            detected=int(steps[row]),
            value=float(smooth[row]),
            usual=usual,
        )
    return None


def _starts(holds: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each row, the first row of the span up to it in which it holds; the next row if it does not hold there."""
    rows = np.arange(len(holds))
    return np.asarray(np.maximum.accumulate(np.where(holds, -1, rows)) + 1)


def _bad_batch(signals: Table) -> _Sign | None:
    """One gradient that filled the second moments, so that the later steps are too small for the loss to improve."""
    lr, effective = finite_readings(signals, "lr"), finite_readings(signals, "effective_lr")
    steps, values = effective
    if len(steps) < 3 or not len(lr.steps):
        return None
    loss, grad_norm = finite_readings(signals, "loss"), finite_readings(signals, "grad_norm")
    ratio = values / np.maximum(np.interp(steps, *lr), 1e-30)
    usual = np.concatenate([[0.0], running_median(ratio, 3)[:-1]])
    for row in np.flatnonzero(ratio < _T["poisoned"] * usual):
        spike = _find_spike(grad_norm, int(steps[row - 1]), int(steps[row])) if row >= 2 else None
        if spike is None:
            continue
        step, norm, common = spike
        # Only harm counts. There is none if the loss falls all the same.
        late = int(steps[min(int(np.searchsorted(steps, step + _T["calm"])), len(steps) - 1)])
        before, after = loss.up_to(step - 1)[-2 * _SMOOTH :], loss.between(step + 1, late)[-2 * _SMOOTH :]
        waited = late >= step + _T["calm"] and len(before) and len(after)
        harmed = waited and np.median(after) > max(0.97 * np.median(before), _T["near_0"] * loss.values[0])
        if harmed:
            return _Sign(signal="grad_norm", onset=step, detected=late, value=norm, usual=common)
    return None


def _find_spike(norm: Series, first: int, last: int) -> tuple[int, float, float] | None:
    """Find one gradient between two steps whose norm is far above the usual, without others like it before or after.

    Only readings of nearly every step show that it was one batch. If the leap is huge, all that follows may come of it.

    Returns:
        Its step, its norm and the usual norm; None if there is none.
    """
    steps, norms = norm
    low, high = int(np.searchsorted(steps, first)), int(np.searchsorted(steps, last, "right"))
    if high - low < 1 or low < 3 or norm.distance(int(steps[low])) > _EVERY_STEP:
        return None
    largest = low + int(norms[low:high].argmax())
    for row in range(low, largest + 1):
        past = norms[max(0, row - _PAST) : row]
        # Gradients that have died are no measure: a norm that was usual once is no spike.
        recent = float(np.median(past))
        usual = max(recent, _DIED * float(np.median(norms[:row]))) if recent else 0.0
        noise = noise_of(np.log(past[past > 0]))
        leap = norms[row] / usual if usual else 0.0
        if leap < max(_T["spike"], np.exp(_SPIKE_NOISES * noise)) or norms[row - 1] > min(
            _T["ramp"] * norms[row], _RAMP * usual
        ):
            continue
        after = norms[row + 1 : high]
        alone = not len(after) or float(np.median(after)) < 0.25 * norms[row]
        if leap > _T["leap"] or alone:
            return int(steps[row]), float(norms[row]), usual
    return None


def _rounded(value: float, digits: int) -> str:
    """The value rounded to significant digits, without an exponent where that is readable."""
    return f"{float(f'{value:.{digits}g}'):g}"


def _second_moments_advice(signals: Table, step: int, now: int) -> str:
    """Return a sentence on the second moments if the gradient of that step filled them."""
    effective = finite_readings(signals, "effective_lr")
    before, after = effective.up_to(step)[-1:], effective.between(step + 1, min(step + 12, now))[:1]
    if not len(before) or not len(after) or after[0] > 0.7 * before[0]:
        return ""
    return f" It filled the second moments: the effective lr fell from {before[0]:.2g} to {after[0]:.2g} for long."


def _clip_advice(signals: Table, step: int) -> str:
    """Return a sentence on the clip if the applied gradient is the measured one."""
    norm, applied = (finite_readings(signals, name).up_to(step) for name in ("grad_norm", "applied_norm"))
    not_clipped = len(norm) and len(applied) and applied.max() > 0.9 * norm.max()
    return " Gradients are not clipped." if not_clipped else ""


def _loss_falls(loss: Series, step: int) -> bool:
    """Whether the loss is lower than a few readings ago. Then growth does no harm."""
    recent = loss.up_to(step)[-4 * _SMOOTH :]
    last, first = (recent[-_SMOOTH:], recent[: 2 * _SMOOTH]) if len(recent) > _SMOOTH else (recent[-1:], recent[:1])
    return len(recent) > 1 and bool(np.median(last) < 0.95 * np.median(first))


def _loss_is_hurt(loss: Series, step: int, now: int) -> bool:
    """Whether the loss after that step is no better than before it, and is not coming back from where it had risen.

    Near 0, larger gradients do no harm.
    """
    before, after = loss.up_to(step)[-_SMOOTH:], loss.between(step + 1, now)
    if not len(before) or not len(after):
        return True
    start, usual = loss.values[0], np.median(before)
    top, last = np.median(after[: 2 * _SMOOTH]), np.median(after[-_SMOOTH:])
    if start > 0 and last < _T["near_0"] * start:
        return False
    risen = top - usual
    if risen < 0.05 * abs(usual):
        return bool(last > usual - 0.02 * abs(usual))
    return bool(last - usual > 0.75 * risen)

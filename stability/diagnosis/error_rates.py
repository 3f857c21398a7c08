"""What the error rates show: whether a training learned, lost what it had learned, or came to rest."""

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stability.diagnosis.finding import (
    THRESHOLDS,
    Finding,
    Floats,
    Series,
    Steps,
    finite_readings,
    noise_of,
    running_median,
    update_in_words,
)
from stability.diagnosis.no_progress import why_shrunk
from stability.diagnosis.table import Table

_T = THRESHOLDS["error_rate"]
_LEARNED, _WELL = THRESHOLDS["learned"]["surely"], THRESHOLDS["learned"]["well"]
_SMOOTH = 3


class Best(NamedTuple):
    """The best error rate of a training, and its step. Of many, the median of three: one lucky validation is none."""

    step: int
    rate: float


def best_of(steps: Steps, rates: Floats) -> Best:
    """Return the best error rate. There must be one."""
    smooth = running_median(rates, _SMOOTH) if len(rates) > _T["few"] else rates
    row = int(smooth.argmin())
    return Best(int(steps[row]), float(smooth[row]))


def degraded(signals: Table, validation: Table) -> Finding | None:
    """Detect an error rate that lost a good part of what it had learned, at three validations in a row."""
    steps, rates = finite_readings(validation, "per")
    if len(rates) < 4:
        return None
    lowest, last_three = np.minimum.accumulate(rates)[:-3], sliding_window_view(rates, 3)[1:].min(axis=1)
    # No best rate is below the lowest one. So most validations need no closer look, which would take longer.
    for row in np.flatnonzero(last_three - lowest > _T["alarm"]) + 3:
        best = best_of(steps[: row - 2], rates[: row - 2])
        now = float(last_three[row - 3])
        if rates[row] < rates[row - 2 : row].min():
            continue  # it is coming back
        lost = now - best.rate > _T["alarm"] and is_lost(rates[: row + 1], best.rate, now)
        if lost and not loss_went_on(validation, best.step, int(steps[row])):
            return _finding(signals, validation, best, int(steps[row]), float(rates[row]))
    return None


def is_lost(rates: Floats, best: float, now: float) -> bool:
    """Return whether `now` is so much worse than the best that a good part of what was learned is lost.

    What this training learned is the way from its first error rate to the best one. Fluctuations are no loss.
    """
    risen = now - best
    learned = min(1.0, float(rates[0])) - best
    much = risen > _T["lost"] * learned or now > _T["times"] * best
    rise = min(_T["rise"], max(best, _T["least"]))  # of a very good model, a few per cent are a lot
    # A few rates that fall steeply look like noise.
    noise = noise_of(rates) if len(rates) > _T["few"] else 0.0
    return 1 - best > _T["learned"] and much and risen > max(rise, _T["noises"] * noise)


def loss_went_on(validation: Table, best: int, now: int) -> bool:
    """Return whether the validation loss went on falling. Then the error rate is wrong, and nothing was lost."""
    losses = finite_readings(validation, "loss")
    then, later = losses.up_to(best)[-1:], losses.between(best + 1, now)
    if not len(then) or not len(later):
        return False
    return bool(later[-1] < _T["went_on"] * then[0] and later[-1] < _T["back_up"] * later.min())


def overfits(signals: Table, validation: Table, best: int, now: int) -> bool:
    """Return whether the training loss went on falling since the best validation, and the validation loss did not.

    A training loss that leapt on its way, or that was lower before, is not that of a model that goes on with its data.
    """
    loss, held_out = finite_readings(signals, "loss"), finite_readings(validation, "loss")
    then, present = _losses_at(loss, best, now)
    if now <= best or not len(then) or not len(present) or np.median(present) > np.median(then):
        return False
    since = loss.between(best + 1, now)
    lowest = running_median(since, len(present)).min()
    if _leap(loss, best, now) is not None or np.median(present) > max(_T["lowest"], _noise(since)) * lowest:
        return False
    before, after = held_out.up_to(best)[-1:], held_out.up_to(now)[-1:]
    return not len(before) or bool(after[0] > before[0])


def _leap(loss: Series, best: int, now: int) -> tuple[int, float] | None:
    """The step and the height of a leap of the training loss since the best validation; None if there is none."""
    then, since = _losses_at(loss, best, now)[0], loss.between(best + 1, now)
    smooth = running_median(since, _SMOOTH)
    if not len(then) or not len(since) or smooth.max() <= max(_T["leap"], _noise(since)) * np.median(then):
        return None
    return int(loss.steps[len(loss.up_to(best)) + smooth.argmax()]), float(smooth.max())


def _noise(loss: Floats) -> float:
    """The factor by which a loss fluctuates."""
    return float(np.exp(_T["noises"] * noise_of(np.log(loss[loss > 0]))))


def _losses_at(loss: Series, best: int, now: int) -> tuple[Floats, Floats]:
    """The last losses up to the best validation, and up to now."""
    window = min(5, 1 + len(loss.up_to(now)) // 10)
    near = best + loss.distance(best) - 1  # a log may have its readings next to the validations
    return loss.up_to(near)[-window:], loss.between(best + 1, now)[-window:]


def has_slipped(rates: Floats, best: float, overfits: bool = False) -> bool:
    """Return whether the last quarter of many error rates is worse than the best one, if only by a smaller part.

    Args:
        rates: All error rates.
        best: The best one.
        overfits: Whether the losses show that, too. Then the rise need not be as large.
    """
    quarter = len(rates) // 4
    if quarter < _SMOOTH or best >= _LEARNED:  # then there was nothing to lose
        return False
    if overfits:  # then the best one was no luck
        best = float(rates.min())
    risen = float(min(np.median(rates[-quarter:]), rates[-1])) - best
    noise = _T["noises"] * noise_of(rates)
    return risen > (max(_T["rise"], noise) if overfits else max(_T["rise"], _T["slipped"] * best, 2 * noise))


def has_improved(rates: Floats) -> bool:
    """Return whether the last rates are better than the first ones by more than they fluctuate."""
    if len(rates) < 2:
        return False
    gained = min(float(rates[0]), 1.0) - float(rates[-1])
    return gained > max(_T["gain"], _T["noises"] * noise_of(rates) if len(rates) > 2 * _SMOOTH else 0.0)


def has_come_to_rest(values: Floats) -> bool:
    """Return whether the last third of error rates or losses is no better than the third before it, nor its end."""
    third = len(values) // 3
    if third < 2:
        return False
    before = float(np.median(values[-2 * third : -third]))
    last = float(min(np.median(values[-third:]), np.median(values[-_SMOOTH:])))
    return before - last < _T["rest"] * max(1.0, abs(before))


def _finding(signals: Table, validation: Table, best: Best, step: int, rate: float) -> Finding:
    cause, advice = why_lost(signals, validation, best.step, step)
    return Finding(
        kind="degraded",
        cause=cause,
        onset_step=best.step,
        detected_step=step,
        signal="per",
        value=rate,
        expected=f"about {best.rate:.2g}, as at step {best.step}",
        advice=f"The error rate had come down to {best.rate:.2g} at step {best.step}, and is {rate:.2g} now. {advice}",
    )


def why_lost(signals: Table, validation: Table, best: int, now: int) -> tuple[str, str]:
    """Find out from the losses and the optimizer why the error rate got worse since the best step.

    Returns:
        Cause and advice.
    """
    loss, lr, update = (finite_readings(signals, name) for name in ("loss", "lr", "update_ratio"))
    rates_then, rates_now = lr.up_to(best)[-1:], lr.up_to(now)[-1:]
    weights = finite_readings(signals, "weight_norm")
    norms = weights.up_to(best)[-1:], weights.up_to(now)[-1:]
    if all(map(len, norms)) and (decayed := why_shrunk(float(norms[0][0]), float(norms[1][0]))) is not None:
        return decayed
    if len(rates_then) and len(rates_now) and rates_now[0] > THRESHOLDS["exploded"]["raised"] * rates_then[0] > 0:
        return "rate_too_high", (
            f"Meanwhile the lr rose from {rates_then[0]:.3g} to {rates_now[0]:.3g}: it is too high. Lower its maximum."
        )
    if overfits(signals, validation, best, now):
        before, after = (float(np.median(own)) for own in _losses_at(loss, best, now))
        rates = finite_readings(validation, "per")
        then, recent = rates.up_to(best)[-1:], rates.between(best + 1, now)[-_SMOOTH:]
        if len(then) and len(recent) and then[0] <= _WELL and recent.min() >= _LEARNED:
            return "labels", (
                f"Meanwhile the training loss went from {before:.3g} to {after:.3g}, and next to nothing is right in "
                "validation, where overfitting would leave a part: look at what changed in the validation data, their "
                "labels and the decoder."
            )
        return "overfitting", (
            f"Meanwhile the training loss went from {before:.3g} to {after:.3g}: it "
            "overfits its training data. Stop at the best validation, add augmentation, dropout or weight "
            "decay, or train on more data."
        )
    then, present = _losses_at(loss, best, now)
    if len(then) and len(present) and np.median(present) <= np.median(then) and (leap := _leap(loss, best, now)):
        return "unknown", (
            f"The training loss leapt to {leap[1]:.3g} at about step {leap[0]}, and has come down again since then: "
            "from there on, something else is learned. Look at what changed there, the labels and the inputs first."
        )
    rising = lr.up_to(best - (best - int(lr.steps[0])) // 2)[-1:] if len(lr.steps) else lr.values
    if len(rising) and len(rates_then) and len(rates_now) and 1.2 * rising[0] < rates_then[0] <= rates_now[0]:
        return "rate_too_high", (
            f"The lr had risen from {rising[0]:.3g} to {rates_then[0]:.3g} by then, is {rates_now[0]:.3g} now, and the "
            "training loss rose, too: the lr is too high. Lower its maximum, or let it fall earlier."
        )
    if len(rates_then) and len(rates_now) and rates_now[0] > 1.2 * rates_then[0]:
        return "rate_too_high", (
            f"Meanwhile the lr rose from {rates_then[0]:.3g} to {rates_now[0]:.3g} and the training loss rose, too: "
            "the lr is too high. Lower its maximum, or let it fall earlier."
        )
    sizes = update.between(best + 1, now)
    if len(sizes) and sizes.max() > _T["update"]:
        return "rate_too_high", (
            f"Updates are up to {update_in_words(float(sizes.max()))}, and the training loss rose, too: the lr is "
            "too high. Lower it."
        )
    missing = [
        what
        for what, series in (("the lr", lr), ("the size of updates", update), ("the training loss", loss))
        if not len(series.steps)
    ]
    seen = ["the training loss did not fall meanwhile"] if len(loss.steps) else []
    seen += ["the lr did not rise"] if len(lr.steps) else []
    found = f"{' and '.join(seen)}. ".capitalize() if seen else ""
    return "unknown", (
        f"{found}Look at what else changed since then, the data first."
        + (f" Not recorded: {', '.join(missing)}." if missing else "")
    )

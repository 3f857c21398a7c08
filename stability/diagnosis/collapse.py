"""The blank plateau, on which every CTC decoder begins, and collapses.

A collapsed decoder outputs only blank, or only a few phonemes: it never left the plateau, or it fell back. Blank hides
what a decoder learns behind it. `frame_information`, the mutual information between frame and non-blank class, shows
it: it grows before the other classes appear in the output, so the end of the plateau can be forecast from it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stability.diagnosis.explosion import weights_shrink, why_exploded
from stability.diagnosis.finding import (
    THRESHOLDS,
    Finding,
    Outcome,
    Series,
    Steps,
    finite_readings,
    running_median,
)
from stability.diagnosis.no_progress import why_no_progress
from stability.diagnosis.table import Table

_T = THRESHOLDS["collapsed"]
_SOME, _WELL = THRESHOLDS["learned"]["some"], THRESHOLDS["learned"]["well"]
_LARGE = THRESHOLDS["exploded"]["update"]
_SMOOTH = 5
_FEW = 3  # readings of the frame information whose median counts
_FEWEST_POINTS = 6  # readings of the frame information that a forecast needs
_MOST_POINTS = 500  # readings that it uses: its memory grows with the square of their number


@dataclass(frozen=True)
class Forecast:
    """When the blank plateau ends if the frame information goes on growing as it does now.

    Attributes:
        step: The expected step; inf if the frame information does not grow.
        earliest: The lower end of a 95 % interval.
        latest: The upper end of a 95 % interval.
    """

    step: float
    earliest: float
    latest: float

    def __str__(self) -> str:
        """The forecast in words."""
        if math.isinf(self.earliest):
            return "not at the present rate of change"
        latest = "never" if math.isinf(self.latest) else f"{self.latest:.0f}"
        interval = f"95 % interval: {self.earliest:.0f} to {latest}"
        return interval if math.isinf(self.step) else f"about step {self.step:.0f} ({interval})"


@dataclass(frozen=True)
class _NarrowSpan:
    """A span of steps in which the decoder outputs only blank, or only a few phonemes."""

    first: int
    last: int
    only_blank: bool

    @property
    def outcome(self) -> Outcome:
        return "blank_collapse" if self.only_blank else "mode_collapse"


def narrow_output_since(signals: Table, step: int) -> tuple[int, bool] | None:
    """Return since which step the decoder has output only blank or only a few phonemes.

    Returns:
        That step, and whether it is only blank; None if the decoder outputs more at `step`.
    """
    for span in reversed(_narrow_spans(signals)):
        if span.first <= step <= span.last:
            return span.first, span.only_blank
    return None


def forecast(signals: Table, since: int, now: int) -> Forecast | None:
    """Forecast the end of the blank plateau from the frame information between two steps.

    Returns:
        The forecast; None if the frame information was not measured often enough.
    """
    steps, information = finite_readings(signals, "frame_information")
    window = (steps >= since) & (steps <= now) & (information > 0)
    if window.sum() < _FEWEST_POINTS:
        return None
    from scipy.stats import theilslopes  # late: it takes a while to import, and most trainings never need it

    # Only the latest half of the plateau: its beginning says little about how it changes now.
    x, y = steps[window].astype(float), np.log(information[window])
    half = max(_FEWEST_POINTS, len(x) // 2)
    x, y = x[-half:], y[-half:]
    thinned = slice(None, None, -(-half // _MOST_POINTS))
    x, y = x[::-1][thinned], y[::-1][thinned]  # from the end, so that the newest reading stays
    if x[0] == x[-1]:
        return None
    slope, intercept, low, high = theilslopes(y, x)
    missing = math.log(_T["leaves"]) - (intercept + slope * now)
    if missing <= 0:
        return Forecast(now, now, now)
    step, earliest, latest = (now + missing / s if s > 0 else math.inf for s in (slope, high, low))
    return Forecast(step, earliest, latest)


def will_last(ahead: Forecast, now: int, age: int) -> bool:
    """Return whether a plateau of that age lasts several times as long again if the forecast is right."""
    return age >= _T["stuck"] and ahead.earliest - now >= _T["horizon"] * age


def _may_leave_at_once(update: Series, step: int) -> bool:
    """Whether updates are large and have not gone far yet. Then a plateau may end without a sign before."""
    sizes = update.up_to(step)
    if not len(sizes):
        return False
    path = float(sizes.mean()) * (step - int(update.steps[0]))
    return bool(np.median(sizes[-3:]) > _T["moves"] and path < _T["far"])


def _narrow_spans(signals: Table) -> list[_NarrowSpan]:
    steps, blank = finite_readings(signals, "blank_fraction")
    phoneme_steps, phonemes = finite_readings(signals, "distinct_phonemes")
    if not len(steps):
        return []
    only_blank = running_median(blank, _SMOOTH) >= _T["blank"]
    narrow = only_blank.copy()
    if len(phoneme_steps) == len(steps):
        narrow |= running_median(phonemes, _SMOOTH) <= _T["few"]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], narrow, [False]]).astype(int)))
    return [
        _NarrowSpan(
            first=int(steps[max(0, first - _SMOOTH // 2)]),  # the median is late by half its width
            last=int(steps[end - 1]),
            only_blank=bool(only_blank[first:end].mean() > 0.5),
        )
        for first, end in zip(edges[::2], edges[1::2], strict=True)
    ]


def relapsed(signals: Table, validation: Table) -> Finding | None:
    """Detect a decoder that had learned something, and outputs only blank or a few phonemes again.

    The frame information shows whether it had learned; if that was not recorded, the error rate shows it.
    """
    information, rates = finite_readings(signals, "frame_information"), finite_readings(validation, "per")
    name, series = ("frame_information", information) if len(information.steps) else ("per", rates)
    for span in _narrow_spans(signals):
        before = series.up_to(span.first)
        if name == "frame_information":
            # One batch may lie far from the others.
            best = float(running_median(before, _FEW).max(initial=0))
            had_learned = best >= _T["spoke"]
            lost = running_median(series.values, _FEW) < _T["relapsed"] * best
            if best - series.values[0] < _T["spoke"]:
                lost &= ~_has_always_erred(rates, series.steps)
            reached, expected = f"{best:.2g} nats of frame information", f"about {best:.2g} nats"
        else:
            best = before.min(initial=np.inf)
            had_learned, lost = best <= _WELL, series.values >= _SOME
            reached, expected = f"an error rate of {best:.2g}", f"about {best:.2g}"
        lost &= (series.steps >= span.first + _T["lasting"]) & (series.steps <= span.last)
        if not had_learned or not lost.any():
            continue
        step = int(series.steps[lost][0])
        cause, changed = _by_large_updates(signals, span.first, step) or (
            "relapse",
            _what_changed(signals, span.first, step),
        )
        output = "only blank" if span.only_blank else f"at most {_T['few']:.0f} phonemes"
        return Finding(
            kind=span.outcome,
            cause=cause,
            onset_step=span.first,
            detected_step=step,
            signal=name,
            value=float(series.values[lost][0]),
            expected=expected,
            advice=f"The decoder had reached {reached}. Since step {span.first} it outputs {output}. {changed}",
        )
    return None


def _has_always_erred(rates: Series, steps: Steps) -> NDArray[np.bool_]:
    """At which steps all error rates so far were those of a decoder that has learned nothing.

    What an untrained decoder outputs may have some information, too. One from a checkpoint has better error rates.
    """
    if not len(rates.steps):
        return np.zeros(len(steps), bool)
    count = np.searchsorted(rates.steps, steps, "right")
    always: NDArray[np.bool_] = (count > 0) & (np.minimum.accumulate(rates.values)[count - 1] >= _SOME)
    return always


def stuck(signals: Table, validation: Table) -> Finding | None:
    """Detect a decoder that has been on the blank plateau from the start, and will stay there several times as long."""
    information = finite_readings(signals, "frame_information")
    lr, update = finite_readings(signals, "lr"), finite_readings(signals, "update_ratio")
    for span in _narrow_spans(signals):
        if information.up_to(span.first).max(initial=0) >= _T["spoke"]:
            continue
        next_forecast = _T["stuck"]
        steps = information.steps
        for step in steps[(steps >= span.first + _T["lasting"]) & (steps <= span.last)].tolist():
            if _rate_rises(lr, span.first, step):
                continue
            age = step - span.first
            ahead = forecast(signals, span.first, step) if age >= next_forecast else None
            if age >= next_forecast:
                next_forecast = 1.1 * age  # for speed: a plateau ten times as old is checked a tenth as often
            lasts = ahead is not None and will_last(ahead, step, age) and not _may_leave_at_once(update, step)
            if not lasts and not _updates_vanish(update, step):
                continue
            cause, advice = why_no_progress(signals, validation, step)
            return Finding(
                kind=span.outcome,
                cause=cause,
                onset_step=span.first,
                detected_step=step,
                signal="frame_information",
                value=float(information.up_to(step)[-1]),
                expected=f"{_T['leaves']} nats, at which the plateau ends" + (f": {ahead}" if ahead else ""),
                advice=advice,
            )
    return None


def _by_large_updates(signals: Table, since: int, now: int) -> tuple[str, str] | None:
    """Cause and advice if updates that were too large ended what was learned; else None."""
    update = finite_readings(signals, "update_ratio")
    large = update.between(since - 5 * max(20, update.distance(since)), now).max(initial=0) > _LARGE
    reason = why_exploded(signals, since, now) if large and not weights_shrink(signals, now) else None
    return reason if reason is not None and reason[0] == "rate_too_high" else None


def _what_changed(signals: Table, step: int, now: int) -> str:
    """Return a sentence about what else changed at a relapse."""
    wide = max(100, 5 * finite_readings(signals, "loss").distance(step))
    suspects = {"weight_norm": "the norm of the weights", "lr": "the lr", "input_max": "the largest input"}
    for name, description in suspects.items():
        series = finite_readings(signals, name)
        before, after = series.between(step - wide, step - 11), series.between(step, min(step + wide, now))
        if not len(before) or not len(after):
            continue
        old, new = float(np.median(before)), float(np.median(after))
        if not 0.67 * old <= new <= 1.5 * old:
            return f"Meanwhile {description} went from {old:.3g} to {new:.3g}: look there first."
    return "The lr, the weights and the inputs hardly changed in size: look at the labels and inputs since then."


def _updates_vanish(update: Series, step: int) -> bool:
    """Whether the last updates were so small that thousands of them would change nothing."""
    recent = update.up_to(step)[-3:]
    return len(recent) == 3 and bool(recent.max() < _T["no_update"])


def _rate_rises(lr: Series, since: int, step: int) -> bool:
    """Whether the learning rate is still warming up."""
    before, now = lr.up_to((since + step) // 2)[-1:], lr.up_to(step)[-1:]
    return bool(len(before) and len(now) and now[0] > 1.05 * before[0])

"""The blank plateau, on which every CTC decoder begins, and collapses: those that never leave it, and those that fall
back to saying only blank, or only a phoneme or two.

Blank hides what is learned behind it. `frame_information`, the mutual information between frame and non-blank class,
shows it: it grows before blank gives way, and tells when the plateau should end.
"""

import math
from dataclasses import dataclass

import numpy as np

from stability.diagnosis.finding import (
    THRESHOLDS,
    Finding,
    Floats,
    Outcome,
    Steps,
    between,
    finite,
    of_weights,
    running_median,
    until,
)
from stability.diagnosis.table import Table

_T = THRESHOLDS["collapsed"]
_SOME, _WELL = THRESHOLDS["learned"]["some"], THRESHOLDS["learned"]["well"]
_SMOOTH = 5
_POINTS = 6  # measurements of the frame information that a forecast needs,
_ENOUGH = 500  # and that it looks at: it takes the square of their number in memory


@dataclass(frozen=True)
class Forecast:
    """The step at which the blank plateau should end at the present rate of change, with a 95 % interval.

    inf: not at this rate.
    """

    step: float
    earliest: float
    latest: float

    def __str__(self) -> str:
        """In words."""
        if math.isinf(self.earliest):
            return "not at the present rate of change"
        latest = "never" if math.isinf(self.latest) else f"{self.latest:.0f}"
        likely = "" if math.isinf(self.step) else f"about step {self.step:.0f}, "
        return f"{likely}95 % between {self.earliest:.0f} and {latest}"


@dataclass(frozen=True)
class _Narrow:
    """A time in which the decoder says only blank, or no more than a few phonemes."""

    first: int
    last: int
    blank: bool

    @property
    def outcome(self) -> Outcome:
        return "blank_collapse" if self.blank else "mode_collapse"


def narrow_since(signals: Table, step: int) -> tuple[int, bool] | None:
    """Since which step the decoder, at that step, has said only blank (or only a few phonemes: False); None if more."""
    for time in reversed(_narrow_times(signals)):
        if time.first <= step <= time.last:
            return time.first, time.blank
    return None


def forecast(signals: Table, since: int, now: int) -> Forecast | None:
    """When blank gives way, from the frame information between two steps. None if it was not measured often enough."""
    steps, information = finite(signals, "frame_information")
    window = (steps >= since) & (steps <= now) & (information > 0)
    if window.sum() < _POINTS:
        return None
    from scipy.stats import theilslopes  # late: it takes a while to import, and most trainings never need it

    # The latest half of the plateau, since what it was at first says little about what it is now.
    x, y = steps[window].astype(float), np.log(information[window])
    half = max(_POINTS, len(x) // 2)
    x, y = x[-half:], y[-half:]
    latest_first = slice(None, None, -(-half // _ENOUGH))
    x, y = x[::-1][latest_first], y[::-1][latest_first]
    if x[0] == x[-1]:
        return None
    slope, intercept, low, high = theilslopes(y, x)
    missing = math.log(_T["leaves"]) - (intercept + slope * now)
    if missing <= 0:
        return Forecast(now, now, now)
    step, earliest, latest = (now + missing / s if s > 0 else math.inf for s in (slope, high, low))
    return Forecast(step, earliest, latest)


def _narrow_times(signals: Table) -> list[_Narrow]:
    steps, blank = finite(signals, "blank_fraction")
    others, distinct = finite(signals, "distinct_phonemes")
    if not len(steps):
        return []
    only_blank = running_median(blank, _SMOOTH) >= _T["blank"]
    few = only_blank.copy()
    if len(others) == len(steps):
        few |= running_median(distinct, _SMOOTH) <= _T["few"]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], few, [False]]).astype(int)))
    return [
        # The median is late by half its width.
        _Narrow(int(steps[max(0, first - _SMOOTH // 2)]), int(steps[end - 1]), bool(only_blank[first:end].mean() > 0.5))
        for first, end in zip(edges[::2], edges[1::2], strict=True)
    ]


def relapsed(signals: Table, validation: Table) -> Finding | None:
    """It had begun to tell frames apart, or had learned by its error rate, and does no more."""
    information, rates = finite(signals, "frame_information"), finite(validation, "per")
    for time in _narrow_times(signals):
        most = until(information, time.first).max(initial=0)
        best = until(rates, time.first).min(initial=np.inf)
        for name, (steps, values), spoke, usual in (
            ("frame_information", information, most >= _T["spoke"], f"{most:.2g} nats of frame information"),
            ("per", rates, best <= _WELL and not len(information[0]), f"an error rate of {best:.2g}"),
        ):
            silent = values >= _SOME if name == "per" else values < _T["relapsed"] * most
            late = silent & (steps >= time.first + _T["lasting"]) & (steps <= time.last)
            if spoke and late.any():
                step, now = int(steps[late][0]), float(values[late][0])
                says = "nothing but blank" if time.blank else f"no more than {_T['few']:.0f} phonemes"
                advice = f"It had come to {usual}, and says {says} since step {time.first}. "
                advice += _what_changed(signals, time.first, step)
                expected = f"about {most:.2g} nats" if name != "per" else f"about {best:.2g}"
                return Finding(time.outcome, "relapse", time.first, step, name, now, expected, advice)
    return None


def stuck(signals: Table, validation: Table) -> Finding | None:
    """It has come to the plateau, and would stay there for several times as long again."""
    steps, information = finite(signals, "frame_information")
    lr, update = finite(signals, "lr"), finite(signals, "update_ratio")
    for time in _narrow_times(signals):
        if until((steps, information), time.first).max(initial=0) >= _T["spoke"]:
            continue
        next_look = _T["stuck"]
        for step in steps[(steps >= time.first + _T["lasting"]) & (steps <= time.last)].tolist():
            if _rate_rises(lr, time.first, step):
                continue
            age = step - time.first
            ahead = forecast(signals, time.first, step) if age >= next_look else None
            if age >= next_look:
                next_look = 1.1 * age  # for speed: a plateau ten times as old is looked at ten times more seldom
            lasts = ahead is not None and ahead.earliest - step >= _T["horizon"] * age
            if not lasts and not _stands_still(update, step):
                continue
            now = float(until((steps, information), step)[-1])
            cause, advice = why_no_progress(signals, step)
            expected = f"{_T['leaves']} nats, at which blank gives way" + (f": {ahead}" if ahead else "")
            return Finding(time.outcome, cause, time.first, step, "frame_information", now, expected, advice)
    return None


def other_labels(signals: Table, validation: Table) -> Finding | None:
    """The loss is learned and the error rate is not: it is trained on other labels than it is validated on."""
    loss = finite(signals, "loss")
    # Of a training that blew up at once, only the first loss is that of its start.
    start = float(min(loss[1][0], np.median(loss[1][:_SMOOTH]))) if len(loss[1]) else math.nan
    for step, rate in zip(*finite(validation, "per"), strict=True):
        recent = until(loss, int(step))[_SMOOTH:][-_SMOOTH:]
        # A loss that may be negative, as a log-likelihood, has no share that is left of it.
        if rate < _SOME or not len(recent) or not 0 <= np.median(recent) < _T["labels_loss"] * start:
            continue
        narrow = narrow_since(signals, int(step))
        if narrow is None or not narrow[1]:  # a decoder that says only blank has another reason for so low a loss
            onset = narrow[0] if narrow is not None else int(step)
            advice = (
                f"The training loss is down to {np.median(recent) / start:.0%} of its start and the validation error "
                f"rate is {rate:.2f}: either it is trained on other labels than it is validated on, or it knows its "
                "training data by heart. Compare both splits' labels and class tables."
            )
            return Finding("mode_collapse", "labels", onset, int(step), "per", float(rate), "well below 1", advice)
    return None


def why_no_progress(signals: Table, step: int) -> tuple[str, str]:
    """Why a decoder does not learn, from what the optimiser does: cause and advice."""
    update = until(finite(signals, "update_ratio"), step)
    weights = until(finite(signals, "weight_norm"), step)
    if len(weights) and weights[-1] < 0.7 * weights.max():
        return "decay", (
            f"The weights have shrunk from {weights.max():.3g} to {weights[-1]:.3g}: the weight decay is stronger than "
            "the gradients; lower it."
        )
    if (unscaled := _clipped_before_unscaling(signals, step)) is not None:
        return "precision", unscaled
    size = float(np.median(update[-3:])) if len(update) else math.nan
    if size > 3 * _T["small_update"]:
        return "no_information", (
            f"Updates are {of_weights(size)} a step, which is enough to learn by: look at the data, "
            "whether inputs and labels still belong together."
        )
    return "step_too_small", _small_step_advice(signals, step, size)


def _small_step_advice(signals: Table, step: int, size: float) -> str:
    share = until(finite(signals, "epsilon_dominance"), step)[-1:]
    rate, effective = until(finite(signals, "lr"), step), until(finite(signals, "effective_lr"), step)
    if not len(share) or not len(rate) or not len(effective):
        return (
            "The optimiser's state was not recorded: see whether its second-moment roots lie below epsilon, and "
            "whether the lr is still high enough."
        )
    moves = f"Updates are {of_weights(size)} a step. " if not math.isnan(size) else ""
    if share[0] < 0.5:
        fallen = f", down from {rate.max():.2g}" if rate[-1] < 0.5 * rate.max() else ""
        return f"{moves}Epsilon has no part in that, the lr of {rate[-1]:.2g}{fallen} is too small: raise it."
    advice = (
        f"{moves}Second-moment roots lie below epsilon for {share[0]:.0%} of the parameters: this is momentum SGD at "
        f"lr/ε = {effective[-1]:.2g}"
    )
    if rate[-1] < 0.5 * rate.max():
        return f"{advice}, and the lr has come down from {rate.max():.2g} to {rate[-1]:.2g}: let it last longer."
    loss, per_label = until(finite(signals, "loss"), step), until(finite(signals, "loss_per_label"), step)
    if len(loss) == len(per_label) and len(loss) and np.median(loss - 1.01 * per_label) < 0:
        labels = until(finite(signals, "labels"), step)
        times = f"{np.median(labels):.2g} times smaller" if len(labels) else "as many times smaller as there are labels"
        advice += (
            f"; the loss is a per-label mean, so gradients are {times} than with a per-utterance sum: try "
            "loss=per_utterance_sum,"
        )
    else:
        advice += ": try"
    return f"{advice} a smaller optimizer.epsilon, or a higher schedule.lr_max."


def _clipped_before_unscaling(signals: Table, step: int) -> str | None:
    """The applied gradient is as small as the clip's limit divided by the loss scale, time and again."""
    scale, applied = until(finite(signals, "loss_scale"), step), until(finite(signals, "applied_norm"), step)
    applied = applied[applied > 0]
    if len(applied) < 3 or not len(scale) or scale[-1] <= 1:
        return None
    middle = float(np.median(applied))
    limit = middle * float(scale[-1])
    if middle > 0.01 or not 0.01 < limit < 1000 or np.ptp(applied[-3:]) > 0.05 * middle:
        return None
    return (
        f"The gradient that is applied always has the norm {middle:.2g}, which is {limit:.3g} over the loss scale of "
        f"{scale[-1]:.10g}: it is clipped before it is unscaled. Call scaler.unscale_(optimizer) before the clip."
    )


def _what_changed(signals: Table, step: int, now: int) -> str:
    """What else was different before a relapse and since."""
    for name, what in (("weight_norm", "the weights' norm"), ("lr", "the lr"), ("input_max", "the largest input")):
        series = finite(signals, name)
        before, after = between(series, step - 100, step - 11), between(series, step, min(step + 60, now))
        if not len(before) or not len(after):
            continue
        old, new = float(np.median(before)), float(np.median(after))
        if not 0.67 * old <= new <= 1.5 * old:
            return f"Meanwhile {what} went from {old:.3g} to {new:.3g}: look there first."
    return "Neither the lr, nor the size of weights or inputs changed much: look at the labels and inputs since then."


def _stands_still(update: tuple[Steps, Floats], step: int) -> bool:
    """Whether the last updates were so small that thousands of them would lead nowhere."""
    recent = until(update, step)[-3:]
    return len(recent) == 3 and bool(recent.max() < _T["no_update"])


def _rate_rises(lr: tuple[Steps, Floats], since: int, step: int) -> bool:
    """Whether the learning rate is still being warmed up."""
    before, now = until(lr, (since + step) // 2)[-1:], until(lr, step)[-1:]
    return bool(len(before) and len(now) and now[0] > 1.05 * before[0])

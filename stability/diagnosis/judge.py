"""Judges a training: turns its findings, and what its losses and error rates say at the end, into one verdict.

`judge` asks one question after another, and the first one that has an answer decides. Each is a function `_by_...`, in
the order in which they are asked.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import nan

import numpy as np

from stability.core.text import counted
from stability.diagnosis.collapse import forecast, narrow_output_since, will_last
from stability.diagnosis.ctc_inputs import BELOW_ZERO
from stability.diagnosis.detectors import as_judged, findings
from stability.diagnosis.error_rates import (
    best_of,
    has_come_to_rest,
    has_improved,
    has_slipped,
    is_lost,
    loss_went_on,
    overfits,
    why_lost,
)
from stability.diagnosis.explosion import recovered, why_grew
from stability.diagnosis.finding import (
    THRESHOLDS,
    Finding,
    Floats,
    Outcome,
    Steps,
    count_at_end,
    finite_readings,
    noise_of,
    readings,
    running_median,
)
from stability.diagnosis.growth import Growth, growth_until
from stability.diagnosis.mismatch import (
    is_far_from_training,
    memorized_few,
    why_it_parts_at_once,
    why_the_error_contradicts,
    why_the_error_stays,
)
from stability.diagnosis.no_progress import clipped_before_unscaling, why_no_progress
from stability.diagnosis.non_finite import (
    count_non_finite,
    is_unchanged,
    non_finite_at_the_end,
    not_finite_parts,
)
from stability.diagnosis.table import Table
from stability.diagnosis.verdict import FATAL, Confidence, Verdict

_SOME, _LEARNED, _WELL = (THRESHOLDS["learned"][name] for name in ("some", "surely", "well"))
_RESTED = 0.7  # an error rate that came to rest at or below this is that of a training that converged
_NOTHING = 0.99  # an error rate of at least this is that of a decoder that outputs nothing
_SILENT = 5  # validations in a row at that rate which show that it stays there
_FEW = 3  # readings, below which nothing can be said
_CUT_OFF = 10  # readings: growth that lasted longer was not cut off; it is found by detectors, or has come to rest
_BY_HEART = 0.005  # a training loss below this share of the validation loss leaves nothing to be learned
_GOOD = 0.25  # an error rate above this may get better with more data
_HALF = 0.45  # an error rate that came to rest above this while the training loss is 0 is not good
_MULTIPLE = 3.0  # losses ended well if the last validation loss is at most this many times the best one
_BACK = 0.8  # and the training loss at most this share of its first value
_SAME = 0.02  # a difference between error rates that is none
_RISEN = 1.5  # times its best; a validation loss that ended above this is that of an overfitted training
_YARDSTICK = 4.0  # a training is not stable at this many times the error rate of a healthy one
_ENDLESS = THRESHOLDS["fp16"]["endless"]
_UPDATED = THRESHOLDS["collapsed"]["small_update"]
_HUGE = 1e4  # times their first norm; no healthy training has weights that grew so much
_LARGE = 1e3  # few have; if the loss is no lower than at its start, such weights are an explosion too
_NEAR_0 = 0.1  # share of its first value below which growth of a validation loss says little
_FLAT = 0.01  # a loss is flat if it falls by a smaller share than this from one quarter of the plateau to the next
_SIZE = "utterances"  # the signal that counts the utterances of a batch
_NEGATIVE = (
    "The training loss is or was negative, which no CTC loss and no cross-entropy is. Look whether log_softmax is "
    "missing, and whether the labels contain the class of blank."
)
_IN_WARMUP = "The training ended within the warm-up, while the lr was still rising. Train beyond the warm-up."
_UNLEARNED = (
    "The training loss was learned, and the validation loss never came down. Either the labels of validation differ, "
    "or the model differs in model.eval() (batch norm, padding), or it has memorized its training data. Validate on "
    "utterances of the training once, and in train mode, and log an error rate."
)


@dataclass(frozen=True)
class _Training:
    """What was recorded of a training, and what the judge asks of it more than once."""

    signals: Table
    validation: Table
    found: Sequence[Finding] = ()
    metric: str = "PER"
    healthy: float | None = None

    @property
    def end(self) -> int:
        """The last step."""
        steps = self.signals.steps if len(self.signals.steps) else self.validation.steps
        return int(steps[-1])

    @cached_property
    def rates(self) -> tuple[Steps, Floats]:
        return finite_readings(self.validation, "per")

    @property
    def last(self) -> float:
        """The last error rate; NaN if there is none."""
        return float(self.rates[1][-1]) if len(self.rates[1]) else nan

    @cached_property
    def growth(self) -> Growth | None:
        """Growth of the loss that goes on up to the end."""
        return growth_until(self.signals, self.end)

    @cached_property
    def evidence(self) -> dict[str, float | str]:
        return _evidence(self)

    def conclude(
        self, outcome: Outcome, cause: str | None, advice: str, confidence: Confidence, onset: int | None = None
    ) -> Verdict:
        """The verdict that follows from all that was recorded, up to the end."""
        return Verdict(outcome, cause, onset, self.end, self.evidence, advice, confidence)


def stopping_verdict(
    signals: Table,
    validation: Table,
    stop_on: Collection[str],
    found: Sequence[Finding] | None = None,
    *,
    metric: str = "PER",
) -> Verdict | None:
    """Return the verdict that ends a training early.

    Args:
        signals: A row per training step so far.
        validation: A row per validation so far.
        stop_on: The kinds of findings that end a training.
        found: The `findings` of these tables, if the caller has them.
        metric: The error rate's own name.

    Returns:
        The verdict on the first finding of these kinds; None if there is none.
    """
    for finding in findings(signals, validation) if found is None else found:
        if finding.kind in stop_on:
            return _verdict_on(finding, _Training(as_judged(signals, validation), validation, metric=metric))
    return None


def is_check_due(step: int) -> bool:
    """Return whether to run the detectors before a step: every 10th, and later, as they take longer, every 80th."""
    return step % (10 * min(max(step // 100, 1), 8)) == 0


def judge(
    signals: Table,
    validation: Table,
    found: Sequence[Finding] | None = None,
    *,
    metric: str = "PER",
    healthy: float | None = None,
) -> Verdict:
    """Return the verdict on a training that has ended, or on what a log contains of one.

    A finding decides if it still holds at the end: a training whose loss came back, or whose decoder outputs more than
    blank again, has recovered. Then comes what needs no waiting at the end, such as growth that the end cut off. If
    nothing of that decides, the error rates do: the training is stable if the last one is good and no good part of the
    best one is lost, slow if they get better, and undecided otherwise. What was not recorded is not judged.

    Args:
        signals: A row per training step.
        validation: A row per validation, with `per` (the error rate, 1 if all is wrong) and `loss`.
        found: The `findings` of these tables, if the caller has them.
        metric: The error rate's own name.
        healthy: The error rate of a healthy training at the last step, if it is known.
    """
    if not len(signals.steps) and not len(validation.steps):
        return Verdict("undecided", "no signals", advice="No training step was recorded.", confidence="low")
    found = findings(signals, validation) if found is None else found
    training = _Training(as_judged(signals, validation), validation, found, metric, healthy)
    for decide in (
        _by_the_place_of_the_step,
        _by_finding,
        _by_growth,
        _by_lost_validation,
        _by_best_rate,
        _by_good_rates,
        _by_mismatch,
        _without_rates,
        _by_progress,
    ):
        if (verdict := decide(training)) is not None:
            return verdict
    return _by_plateau(training)


def _by_the_place_of_the_step(t: _Training) -> Verdict | None:
    """The verdict if from the start no gradient was there when the step was measured, and yet the parameters changed.

    Weight decay alone changes them less.
    """
    _, updates = finite_readings(t.signals, "update_ratio")
    never = any(f.cause == "no_gradient" and f.onset_step == t.signals.steps[0] for f in t.found)
    if not never or not len(updates) or updates[-1] < _UPDATED:
        return None
    advice = (
        "The parameters change, but there was no gradient when the step was measured. Call step between backward() and "
        "optimizer.step(), and zero_grad() after that."
    )
    return t.conclude("undecided", "no_gradient", advice, "high")


def _by_finding(t: _Training) -> Verdict | None:
    """The verdict by a finding that still holds at the end."""
    at_the_end = non_finite_at_the_end(t.signals)
    if at_the_end is not None and not _is_only_scaled(at_the_end, t) and not _is_validated_since(at_the_end, t):
        # What the batch was given may explain the step better.
        given = (f for f in t.found if f.kind == "bad_data" and _explains(f, at_the_end.detected_step, t))
        return _verdict_on(next(given, at_the_end), t)
    for finding in sorted(t.found, key=_rank):
        if _still_holds(finding, t):
            return _verdict_on(finding, t)
    return None


def _explains(data: Finding, step: int, t: _Training) -> bool:
    """Whether wrong data explain a loss that is not finite: they are of that step, or all that was given since then."""
    counts, sizes = (
        finite_readings(t.signals, name).between(data.detected_step, step) for name in (data.signal, _SIZE)
    )
    always = len(counts) > 0 and len(counts) == len(sizes) and bool((counts >= sizes).all())
    return data.detected_step == step or (data.detected_step < step and always)


def _is_only_scaled(finding: Finding, t: _Training) -> bool:
    """Whether only gradient norms are infinite, in a training that learned: fp16's scaler skips such steps.

    A scaler that skips all steps since some time trains no more.
    """
    infinite = np.isinf(readings(t.signals, "grad_norm")[1])
    endless = not infinite.all() and count_at_end(infinite) >= _ENDLESS
    return finding.signal == "grad_norm" and finding.value == np.inf and t.last <= _WELL and not endless


def _is_validated_since(finding: Finding, t: _Training) -> bool:
    """Whether validations after it are good: a mean in the log contains a skipped batch, or one step was skipped."""
    steps, losses = t.rates[0], finite_readings(t.validation, "loss")
    later = int((steps > finding.onset_step).sum())
    if (
        later < (2 if finding.signal == "loss" else 1)
        or (finding.signal == "grad_norm" and count_at_end(~np.isfinite(readings(t.signals, "grad_norm")[1])) > 1)
        or is_unchanged(t.validation, finding.onset_step)
        or (len(losses.steps) and losses.steps[-1] != steps[-1])
    ):
        return False
    return t.last <= _WELL and not _has_lost(t)


def _rank(finding: Finding) -> int:
    """The place of a finding among several that hold.

    What is wrong with the data explains all else. If a decoder outputs little and the labels may differ, the labels
    explain it better. That it lost what it had learned says less than that it exploded or collapsed.
    """
    if finding.kind in ("bad_data", "not_training"):
        return 0
    return 1 if finding.cause == "labels" else 3 if finding.kind == "degraded" else 2


def _by_growth(t: _Training) -> Verdict | None:
    """An explosion whose beginning is the last that was recorded."""
    growth = t.growth
    if growth is None or growth.value < _MULTIPLE * growth.usual:
        return None
    if growth.readings > _CUT_OFF and not growth.goes_on:
        return None
    steps, _ = t.rates
    good = len(steps) > 0 and steps[-1] >= growth.onset and t.last <= _WELL and not _grew_since(int(steps[-1]), t)
    if not len(steps):  # then the validation loss tells
        later = finite_readings(t.validation, "loss").between(growth.onset, t.end)
        good = len(later) > 1 and growth.value < _BACK * finite_readings(t.signals, "loss").values[0]
    if (good and not _validation_loss_grew(growth.onset, t)) or _went_on_learning(growth.onset, t):
        return None
    cause, advice = why_grew(t.signals, growth.onset, growth.last)
    grew = f"The loss grew from {growth.usual:.3g} to {growth.value:.3g}, and the log ends there. "
    confidence: Confidence = "medium" if growth.readings > 1 else "low"
    return t.conclude("exploded", cause, grew + advice, confidence, growth.onset)


def _grew_since(step: int, t: _Training) -> bool:
    """Whether the loss grew on at each of several readings since that step, to a multiple of what it was there."""
    loss = finite_readings(t.signals, "loss")
    since = np.append(loss.up_to(step)[-1:], loss.between(step + 1, t.end))
    return len(since) > _FEW and bool((np.diff(since) > 0).all() and since[-1] > _MULTIPLE * since[0])


def _by_best_rate(t: _Training) -> Verdict | None:
    """The verdict on a training whose last error rate lost a good part of what was learned, or which slipped back."""
    steps, rates = t.rates
    if len(rates) <= _FEW:
        return None
    best = best_of(steps, rates)
    if not (is_lost(rates, best.rate, t.last) or has_slipped(rates, best.rate, _overfits(t))):
        return None
    if loss_went_on(t.validation, best.step, int(steps[-1])):
        return None
    # A model that was trained before may have been at its best before the first loss.
    began = int(min(finite_readings(t.signals, "loss").steps[:1], default=0))
    cause, advice = why_lost(t.signals, t.validation, max(best.step, began), int(steps[-1]))
    lost = f"The last {t.metric} is {t.last:.2g}; the best one was {best.rate:.2g} at step {best.step}."
    outcome: Outcome = "exploded" if _has_exploded_since(best.step, cause, t) else "degraded"
    return t.conclude(outcome, cause, f"{lost} {advice}", "low", best.step)


def _overfits(t: _Training) -> bool:
    """Whether the validation loss has risen while the training loss fell."""
    steps, losses = finite_readings(t.validation, "loss")
    return _has_risen(losses) and overfits(t.signals, t.validation, int(steps[losses.argmin()]), t.end)


def _by_lost_validation(t: _Training) -> Verdict | None:
    """The verdict on a training whose last validations are not finite, while the training loss is."""
    for name, what in (("per", t.metric), ("loss", "validation loss")):
        steps, values = readings(t.validation, name)
        if name == "loss" and t.last <= _WELL:
            return None  # what counts is good
        if len(values) > 1 and not np.isfinite(values[-2:]).any() and np.isfinite(values).any():
            since = int(steps[np.flatnonzero(np.isfinite(values))[-1] + 1])
            advice = (
                f"Since step {since} the {what} is not finite, though the training loss is. Look at what differs in "
                "model.eval(): running statistics of batch norm, another precision, and the validation data."
            )
            return t.conclude("undecided", "validation_loss", advice, "medium", since)
    return None


def _by_good_rates(t: _Training) -> Verdict | None:
    """The verdict on a training whose last error rate is good."""
    if not t.last <= _WELL:
        return None
    if t.healthy is not None and t.last > _YARDSTICK * t.healthy:
        return t.conclude(
            "slow",
            why_no_progress(t.signals, t.validation, t.end)[0],
            f"A healthy training has a {t.metric} of {t.healthy:.2g} here, and this one {t.last:.2g}.",
            "medium",
        )
    # A model that knows its training data by heart does not get better, however its error rates fluctuate.
    by_heart = is_far_from_training(t.signals, t.validation, _BY_HEART)
    rests = has_come_to_rest(t.rates[1]) or by_heart
    if t.last > _HALF and rests and is_far_from_training(t.signals, t.validation):
        return t.conclude("slow", *_by_heart(t), "medium")
    unscaled = clipped_before_unscaling(t.signals, t.end)
    if unscaled is not None:
        return t.conclude("stable", "precision", f"The training learned nevertheless. {unscaled}", "high")
    if t.growth is not None:
        advice = f"The last loss is {t.growth.value:.3g}, after {t.growth.usual:.3g}: look whether it comes down again."
        return t.conclude("stable", None, advice, "medium")
    sure: Confidence = "high" if t.last < _LEARNED * _WELL and len(t.rates[1]) > 1 else "medium"
    by_heart = by_heart and t.last > _GOOD
    if not t.last or not _overfits(t):
        cause, advice = _by_heart(t) if by_heart else (None, "")
        return t.conclude("stable", cause, advice, sure)
    steps, losses = finite_readings(t.validation, "loss")
    best, best_rate = int(losses.argmin()), int(t.rates[1].argmin())
    advice = (
        f"The model overfits: the validation loss had come down to {losses[best]:.3g} at step {steps[best]}, and is "
        f"{losses[-1]:.3g} now, while the training loss fell. The best {t.metric} was {t.rates[1][best_rate]:.2g} at "
        f"step {t.rates[0][best_rate]}, and the last one is {t.last:.2g}. More data, augmentation or dropout may lower "
        "it."
    )
    return t.conclude("stable", "overfitting" if by_heart else None, advice, sure)


def _by_heart(t: _Training) -> tuple[str, str]:
    """Cause and advice if the training loss is nearly 0, and the error rate is not."""
    reason = memorized_few(t.signals) or why_it_parts_at_once(t.signals, t.validation)
    if reason is not None:
        return reason
    cause = "labels" if t.last > _RESTED else "overfitting"
    return cause, (
        f"The {t.metric} is {t.last:.2g}, and the training loss is far below the validation loss. Either the model has "
        "memorized its training data, or the labels of validation differ from those of training. Compare the labels of "
        "both splits, and the error rates of groups of utterances. If the labels are right, add data, augmentation or "
        "dropout."
    )


def _by_mismatch(t: _Training) -> Verdict | None:
    """The verdict on a training that learned its loss and not its error rate."""
    if (certain := why_the_error_contradicts(t.signals, t.validation)) is not None:
        return t.conclude("undecided", *certain, "high")
    if not t.last >= _LEARNED or (t.last < _SOME and has_improved(t.rates[1])):
        return None
    if _was_negative(t):
        return t.conclude("bad_data", "negative_loss", f"{_NEGATIVE} The {t.metric} is {t.last:.2g}.", "medium")
    if _begins_to_fall(t):
        return None
    why = why_the_error_stays(t.signals, t.validation)
    if why is None:
        return None
    return t.conclude("not_training" if why[0] == "no_update" else "undecided", *why, "medium")


def _begins_to_fall(t: _Training) -> bool:
    """Whether the last rate is below 1 and all of the first half: an error rate falls later than the loss.

    If the validation loss rises, the rate does not follow it. Nor does it if it rises again while that loss falls.
    """
    (steps, rates), losses = t.rates, finite_readings(t.validation, "loss").values
    lowest = int(rates.argmin())
    if rates[-1] > rates[lowest] + _SAME and loss_went_on(t.validation, int(steps[lowest]), int(steps[-1])):
        return False
    if len(losses) and np.median(losses[-_FEW:]) > losses[0]:
        return False
    return len(rates) > _FEW and bool(rates[-1] < min(1.0, rates[: len(rates) // 2].min()) - _SAME)


def _without_rates(t: _Training) -> Verdict | None:
    """The verdict on a training without an error rate: whether it is good is not known."""
    if len(t.rates[1]) or narrow_output_since(t.signals, t.end) is not None:
        return None
    _, losses = readings(t.validation, "loss")
    if len(losses) and not np.isfinite(losses).any():
        advice = (
            "The validation loss is not finite at any validation, though the training loss is. If it is infinite, CTC "
            "has no room for the labels of a validation utterance: compare its frames with its labels. Else look for a "
            "NaN in the validation data."
        )
        return t.conclude("undecided", "validation_loss", advice, "medium")
    steps, finite = finite_readings(t.validation, "loss")
    if _is_short(t) and len(finite) < _FEW:
        return t.conclude("undecided", "too_few_readings", _too_few(t), "low")
    if _was_negative(t):
        return t.conclude("undecided", "negative_loss", f"{_NEGATIVE} Log an error rate, too.", "low")
    if _has_risen(finite):
        best = int(steps[finite.argmin()])
        return t.conclude(
            "degraded",
            "overfitting" if overfits(t.signals, t.validation, best, t.end) else "unknown",
            f"The validation loss had come down to {finite.min():.3g} at step {best}, and is {finite[-1]:.3g} now. "
            "Stop at the best validation, and log an error rate: it may improve while the loss gets worse.",
            "low",
            best,
        )
    if (relapse := _relapse_of_the_loss(t)) is not None:
        return t.conclude("degraded", *relapse[1:], "low", relapse[0])
    if len(finite) > _FEW and finite.min() > _BACK * finite[0] and is_far_from_training(t.signals, t.validation):
        reason = memorized_few(t.signals) or why_it_parts_at_once(t.signals, t.validation)
        cause, advice = reason or ("labels", _UNLEARNED)
        return t.conclude("undecided", cause, advice, "low")
    advice = "No error rate was recorded, and losses alone do not show whether the training learned: log an error rate."
    return t.conclude("undecided", "no validation", advice, "low")


def _relapse_of_the_loss(t: _Training) -> tuple[int, str, str] | None:
    """The step of the best training loss, cause and advice if it ended at a multiple of that, far above its noise.

    A first loss that is far above the plateau hides such a relapse from the detector of explosions.
    """
    steps, loss = finite_readings(t.signals, "loss")
    if len(loss) < 4 * _CUT_OFF or loss.min() <= 0:
        return None
    logs = running_median(np.log(loss), _CUT_OFF)
    best = int(logs.argmin())
    risen = logs[-1] - logs[best]
    if risen < max(np.log(_MULTIPLE), _CUT_OFF * noise_of(np.log(loss))) or loss[-1] < _NEAR_0 * loss[0]:
        return None
    cause, advice = why_grew(t.signals, int(steps[best]), t.end)
    lost = f"The loss had come down to {np.exp(logs[best]):.3g}, and is {np.exp(logs[-1]):.3g} now. "
    return int(steps[best]), cause, lost + advice


def _has_risen(losses: Floats) -> bool:
    """Whether the validation loss ended far above its best, against its noise."""
    if len(losses) <= _FEW or losses.min() <= 0 or np.median(losses[-3:]) < _NEAR_0 * losses[0]:
        return False
    logs = np.log(losses)
    risen = np.median(logs[-3:]) - np.median(np.sort(logs)[:3])
    return bool(risen > max(np.log(_RISEN), 4 * noise_of(logs)))


def _by_progress(t: _Training) -> Verdict | None:
    """The verdict on a training whose error rate gets better, or came to rest, without being good."""
    _, rates = t.rates
    _, losses = finite_readings(t.validation, "loss")
    improves = t.last < _SOME and (has_improved(rates) or not has_come_to_rest(losses))
    if _is_short(t) or not (improves or (t.last <= _LEARNED and not _began_with_a_validation(t))):
        return None
    rests = has_come_to_rest(rates) and (len(losses) == 0 or has_come_to_rest(losses))
    if is_far_from_training(t.signals, t.validation):
        return t.conclude("slow", *_by_heart(t), "medium")
    cause, advice = why_no_progress(t.signals, t.validation, t.end)
    if (
        cause == "no_information" and has_improved(rates) and t.last <= _LEARNED and not rests
    ):  # the labels do belong to the inputs
        cause, advice = "no_evidence", "Train for longer."
    if _warms_up(t.signals) and cause in ("step_too_small", "no_evidence") and not has_improved(rates):
        return t.conclude("undecided", "in_warmup", _IN_WARMUP, "low")
    small = cause == "step_too_small" or narrow_output_since(t.signals, t.end) is not None
    if rests and t.last <= _RESTED and not small:
        advice = f"It learned, and converged at a {t.metric} of {t.last:.2g}."
        return t.conclude("stable", None, advice, "medium")
    state = f"It came to rest at a {t.metric} of {t.last:.2g}." if rests else "It learns, but slowly."
    return t.conclude("slow", cause, f"{state} {advice}", "medium")


def _began_with_a_validation(t: _Training) -> bool:
    """Whether the first error rate is that of the untrained model, so that a later one says what was learned."""
    steps, _ = t.rates
    return len(steps) > 0 and len(t.signals.steps) > 0 and bool(steps[0] <= t.signals.steps[0])


def _by_plateau(t: _Training) -> Verdict:
    """The verdict on a training that has not learned anything, or nothing that lasted."""
    if _is_short(t):
        return t.conclude("undecided", "too_few_readings", _too_few(t), "low")
    cause, advice = why_no_progress(t.signals, t.validation, t.end)
    # A warm-up explains what small updates leave unlearned, and nothing that was lost again.
    if _warms_up(t.signals) and cause in ("step_too_small", "no_evidence") and not min(t.rates[1], default=1) < _SOME:
        return t.conclude("undecided", "in_warmup", _IN_WARMUP, "low")
    if cause == "not_in_optimizer" or (cause == "no_gradient" and not _is_frozen_in_part(t)):
        return t.conclude("not_training", cause, advice, "medium")
    narrow = narrow_output_since(t.signals, t.end)
    silent = _silent_since(t)
    since, blank = narrow or (silent, True)
    if since is None:
        best = float(min(t.rates[1], default=nan))
        lost = f"It had a {t.metric} of {best:.2g}, and lost it again."
        return t.conclude(
            "undecided", cause, f"{lost if best < _SOME else 'It has not learned anything yet.'} {advice}", "low"
        )
    ahead = forecast(t.signals, since, t.end)
    if ahead is None and blank and _is_flat(t, since):
        output = "The decoder outputs only blank" if narrow else f"The {t.metric} is that of a decoder without output"
        advice = f"{output}, and the loss is flat. {advice}"
        return t.conclude("blank_collapse", cause, advice, "medium", since)
    if ahead is not None and will_last(ahead, t.end, t.end - since):
        outcome: Outcome = "blank_collapse" if blank else "mode_collapse"
        return t.conclude(outcome, cause, f"At the present rate of change it stays there. {advice}", "medium", since)
    if ahead is not None:
        t.evidence["forecast end of the blank plateau"] = str(ahead)
    return t.conclude("undecided", cause, f"Training ended on the blank plateau. {advice}", "low", since)


def _is_frozen_in_part(t: _Training) -> bool:
    """Whether some parameters are frozen, perhaps on purpose, while the others are trained."""
    frozen = finite_readings(t.signals, "frozen").values[-1:]
    return len(frozen) > 0 and 0 < frozen[0] < 1


def _is_short(t: _Training) -> bool:
    return max(len(finite_readings(t.signals, "loss").steps), len(t.rates[1])) < _FEW


def _too_few(t: _Training) -> str:
    rows = max(len(t.signals.steps), len(t.validation.steps))
    found = counted(rows, "reading"), counted(len(t.rates[1]), "error rate")
    return f"{' and '.join(found)} are too few to judge a training. Train for longer, or log more often."


def _warms_up(signals: Table) -> bool:
    """Whether the learning rate still rises at the end."""
    _, rates = finite_readings(signals, "lr")
    return len(rates) >= _FEW and bool(rates[-1] == rates.max() and rates[-1] > 1.02 * rates[len(rates) * 3 // 4 - 1])


def _silent_since(t: _Training) -> int | None:
    """The step since which the error rate has been that of a decoder that outputs nothing; None if it is not long."""
    steps, rates = t.rates
    silent = count_at_end(np.abs(rates - 1) <= 1 - _NOTHING)
    return int(steps[-silent]) if silent >= max(_SILENT, len(rates) / 2) else None


def _was_negative(t: _Training) -> bool:
    _, loss = finite_readings(t.signals, "loss")
    return bool((loss < BELOW_ZERO).sum() >= _FEW)


def _is_flat(t: _Training, since: int) -> bool:
    """Whether the loss is flat since that step: the validation loss, or else that of training.

    It decides if the frame information was not measured.
    """
    for table in (t.validation, t.signals):
        steps, loss = finite_readings(table, "loss")
        loss = loss[steps >= since]
        if (quarter := len(loss) // 4) > 0:
            before = np.median(loss[-2 * quarter : -quarter])
            return bool(np.median(loss[-quarter:]) > before - _FLAT * abs(before))
    return False


def _still_holds(finding: Finding, t: _Training) -> bool:
    """Whether the training has not recovered from a finding by its end."""
    match finding.kind:
        case "non_finite":
            norms = readings(t.signals, "grad_norm")[1]
            return finding.signal == "loss_scale" and not np.isfinite(norms[-1])
        case "bad_data":
            values = readings(t.signals, "loss")
            return bool(np.isfinite(values[1][values[0] == finding.detected_step]).all())
        case "not_training":
            last = finite_readings(t.signals, finding.signal).values[-1]
            # A log may print a small rate as 0, and a schedule may end in 0.
            trained = finding.signal == "lr" and _has_fallen(t)
            return bool(last == finding.value) and not t.last <= _WELL and not trained
        case "exploded":
            if _weights_are_huge(t):
                return True
            if _is_well_since(finding.detected_step, t):
                return False
            if t.last > _WELL:  # if what was learned is lost though the loss is back, that is no explosion
                return not (recovered(t.signals, finding) and _has_lost(t))
            return not (recovered(t.signals, finding) or _losses_ended_well(t))
        case "degraded":
            return _has_lost(t)
    if finding.cause == "labels":
        return not t.last < _LEARNED
    if t.last < _SOME and not _has_lost(t):  # it outputs more than that
        return False
    return narrow_output_since(t.signals, t.end) is not None and not t.last <= _WELL


def _has_lost(t: _Training) -> bool:
    """Whether a good part of what was learned is lost, by the error rates, of which there is at least one."""
    return is_lost(t.rates[1], best_of(*t.rates).rate, t.last)


def _weights_are_huge(t: _Training) -> bool:
    """Whether the weights are so large that what was learned hangs by a thread, even if error rates are good."""
    _, norms = finite_readings(t.signals, "weight_norm")
    most = _HUGE if _ended_below_start(t, _BACK) else _LARGE
    return len(norms) > 0 and bool(norms[-1] > most * norms[0])


def _has_fallen(t: _Training) -> bool:
    _, loss = finite_readings(t.signals, "loss")
    first, last = loss[: max(1, len(loss) // 10)], loss[-max(1, len(loss) // 3) :]
    return len(loss) > 0 and bool(np.median(last) < _BACK * np.median(first))


def _is_well_since(step: int, t: _Training) -> bool:
    """Whether validations since that step are good: then it is only the training loss that is larger than before."""
    steps, rates = t.rates
    if not len(steps) or steps[-1] < step or not t.last <= _WELL or _has_lost(t):
        return False
    before = rates[steps < step]
    if _went_on_learning(step, t) or _validation_loss_fell(step, t):
        return True
    went_on = len(before) > 0 and (steps >= step).sum() > 1 and t.last <= before.min() + _SAME
    # If the error rates went on as before, a loss that is no larger than at the start has done no harm.
    return not _validation_loss_grew(step, t) and _ended_below_start(t, 1.0 if went_on else _BACK)


def _went_on_learning(step: int, t: _Training) -> bool:
    """Whether error rates got better since a step at which the loss grew: then it only has another scale."""
    steps, rates = t.rates
    before, since = rates[steps < step], rates[steps >= step]
    improved = len(before) > 0 and len(since) > _FEW and np.median(since[-_FEW:]) < before.min() - _SAME
    return bool(improved) and _ended_below_start(t, _BACK)


def _losses_ended_well(t: _Training) -> bool:
    """Whether the training loss ended below its start, and the validation loss near its best."""
    validated = len(finite_readings(t.validation, "loss").steps) > 0
    return _ended_below_start(t, _BACK) and validated and not _validation_loss_grew(0, t)


def _validation_loss_grew(step: int, t: _Training) -> bool:
    """Whether the validation loss was measured since a step, and its last value is a multiple of its best one."""
    losses = finite_readings(t.validation, "loss")
    after = losses.between(step, t.end)
    return len(after) > 0 and bool(after[-1] > _MULTIPLE * losses.values.min())


def _validation_loss_fell(step: int, t: _Training) -> bool:
    """Whether the validation loss fell since a step. Then a training loss that is larger than before does no harm."""
    since = finite_readings(t.validation, "loss").between(step, t.end)
    return len(since) > _FEW and bool(since[-1] < _BACK * since[0]) and not _validation_loss_grew(step, t)


def _ended_below_start(t: _Training, share: float) -> bool:
    _, loss = finite_readings(t.signals, "loss")
    return len(loss) > 10 and bool(np.median(loss[-10:]) < share * min(loss[0], np.median(loss[:5])))


def _verdict_on(finding: Finding, t: _Training) -> Verdict:
    """The verdict by a finding. If a loss grew until it was not finite, that is an explosion."""
    finding = _explained(finding, t)
    if finding.kind == "degraded" and _has_exploded_since(finding.onset_step, finding.cause, t):
        finding = replace(finding, kind="exploded")
    seen: dict[str, float | str] = {finding.signal: finding.value, f"{finding.signal} expected": finding.expected}
    steps, norms = finite_readings(t.signals, "grad_norm")
    if finding.kind in FATAL and (steps < finding.onset_step).any():
        seen["gradient norm before"] = float(norms[steps < finding.onset_step][-1])
    at = int(np.searchsorted(t.signals.steps, finding.onset_step))
    if finding.kind == "non_finite" and (parts := not_finite_parts(t.signals, at)):
        seen["gradient not finite in"] = ", ".join(parts)
    verdict = Verdict(
        outcome=finding.kind,
        cause=finding.cause,
        onset_step=finding.onset_step,
        detected_step=finding.detected_step,
        evidence=seen | t.evidence,
        advice=finding.advice,
        confidence="medium" if finding.cause in ("unknown", "no_evidence") else "high",
    )
    if finding.kind != "non_finite" or finding.cause == "precision":
        return verdict
    if (growth := growth_until(t.signals, finding.onset_step)) is not None:
        cause, advice = why_grew(t.signals, growth.onset, growth.last)
        grew = f"The loss grew from {growth.usual:.3g} to {growth.value:.3g}. Then the {finding.signal} was not finite."
        return replace(verdict, outcome="exploded", cause=cause, onset_step=growth.onset, advice=f"{grew} {advice}")
    if (explosion := _explosion_before(finding.onset_step, t)) is not None:
        return replace(
            verdict,
            outcome="exploded",
            cause=explosion.cause,
            onset_step=explosion.onset_step,
            advice=f"It exploded, and then the {finding.signal} was not finite. {explosion.advice}",
        )
    held_out = finite_readings(t.validation, "loss")
    until_then = held_out.up_to(finding.onset_step)
    if len(until_then) > 1 and until_then[-1] > _MULTIPLE * until_then[:-1].max():
        good = int(held_out.steps[len(until_then) - 2])
        cause, advice = why_grew(t.signals, good, finding.onset_step)
        grew = f"The validation loss grew from {until_then[-2]:.3g} to {until_then[-1]:.3g}. "
        grew += f"Then the {finding.signal} was not finite."
        return replace(verdict, outcome="exploded", cause=cause, onset_step=good, advice=f"{grew} {advice}")
    return verdict


def _has_exploded_since(best: int, cause: str, t: _Training) -> bool:
    """Whether the loss of what was learned since the best validation is an explosion."""
    return _is_above_start_since(best, t) or _exploded_by_the_rate(cause, t)


def _is_above_start_since(best: int, t: _Training) -> bool:
    """Whether the loss was above its start most of the time since the best validation, or is at the end."""
    loss = finite_readings(t.signals, "loss")
    since = loss.between(best + 1, t.end)
    if not len(since) or loss.values[0] <= 0:
        return False
    return bool(max(np.median(since), np.median(since[-_FEW:])) > loss.values[0])


def _exploded_by_the_rate(cause: str, t: _Training) -> bool:
    """Whether too high a rate made both losses multiples of their best, that of validation also of its first value.

    A log may begin after the start, so that the training loss has no level there to be compared with.
    """
    loss, held_out = (finite_readings(table, "loss").values for table in (t.signals, t.validation))
    if cause != "rate_too_high" or not len(loss) or not len(held_out):
        return False
    return bool(held_out[-1] > _MULTIPLE * held_out[0] and loss[-1] > _MULTIPLE * loss.min() > 0)


def _explosion_before(step: int, t: _Training) -> Finding | None:
    """The explosion that was found before that step, if the training had not recovered from it by then."""
    until_then = t.signals.take(t.signals.steps < step)
    found = (f for f in t.found if f.kind == "exploded" and f.detected_step < step)
    return next((f for f in found if not recovered(until_then, f)), None)


def _explained(finding: Finding, t: _Training) -> Finding:
    """The finding with the cause that is known at the end: more was measured since it was made."""
    if finding.kind == "degraded":
        best = best_of(*t.rates)
        cause, advice = why_lost(t.signals, t.validation, best.step, t.end)
        advice = (
            f"The {t.metric} had come down to {best.rate:.2g} at step {best.step}, and is {t.last:.2g} now. {advice}"
        )
    elif finding.cause in ("step_too_small", "no_information", "no_evidence"):
        cause, advice = why_no_progress(t.signals, t.validation, t.end)
    else:
        return finding
    return replace(finding, cause=cause, advice=advice)


def _evidence(t: _Training) -> dict[str, float | str]:
    evidence: dict[str, float | str] = {}
    _, rates = t.rates
    if len(rates):
        evidence |= {f"validation {t.metric}": float(rates[-1]), f"best validation {t.metric}": float(rates.min())}
    evidence |= count_non_finite(t.signals)
    _, blank = finite_readings(t.signals, "blank_fraction")
    if len(blank):
        evidence["blank fraction"] = float(np.median(blank[-max(1, len(blank) // 10) :]))
    _, norms = finite_readings(t.signals, "grad_norm")
    if len(norms) > 1:
        evidence["largest gradient norm after the first"] = float(norms[1:].max())
    for name, what in (
        ("clipped", "share of steps clipped"),
        ("epsilon_dominance", "share of second-moment roots below epsilon"),
        ("effective_lr", "effective learning rate"),
        ("update_ratio", "size of an update over size of the weights"),
        ("unoptimized", "share of parameters that no optimizer changes"),
        ("no_gradient", "share of parameters without a gradient"),
    ):
        _, values = finite_readings(t.signals, name)
        if len(values) and (values[-1] > 0 or name not in ("unoptimized", "no_gradient")):
            evidence[what] = float(values.mean() if name == "clipped" else values[-1])
    return evidence

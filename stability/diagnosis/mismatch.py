"""A loss that is learned while the error rate is not: the metric, the labels, or another mode of the model."""

import math

import numpy as np
from numpy.typing import NDArray

from stability.diagnosis.collapse import narrow_output_since
from stability.diagnosis.finding import (
    THRESHOLDS,
    Finding,
    Steps,
    count_at_end,
    finite_readings,
    noise_of,
    running_median,
)
from stability.diagnosis.table import Table

_T = THRESHOLDS["mismatch"]
_LEARNED = THRESHOLDS["learned"]["surely"]
_SPOKE = THRESHOLDS["collapsed"]["spoke"]
_SMOOTH = 5
_LOOK = (  # at the error rate
    "Look at what computes it: its class of blank, its class table, whether it removes repeats, the order of its "
    "labels, and the text that it compares with."
)


def why_the_error_stays(signals: Table, validation: Table) -> tuple[str, str] | None:
    """Find out why the error rate does not follow a training loss that was learned.

    Returns:
        Cause and advice; None if nothing shows that the training loss was learned.
    """
    _, loss = finite_readings(signals, "loss")
    since = _learned_since(signals, validation)
    steps, rates = finite_readings(validation, "per")
    trained = float(np.median(loss[-_SMOOTH:])) if len(loss) else math.nan
    held_out_at, losses = finite_readings(validation, "loss")
    # On the blank plateau both losses may stand at the same number.
    is_same = len(losses) >= _SMOOTH and np.ptp(losses) == 0
    if is_same and trained < _T["fallen"] * losses[0] and _fell_since(signals, int(held_out_at[0]), trained):
        return "train_eval", (
            f"The training loss fell to {trained:.3g}, and all {len(losses)} validation losses are exactly "
            f"{losses[0]:.6g}: it is another model that is validated. Look whether validation loads an old checkpoint, "
            "or uses a copy or an average of the weights that is never updated."
        )
    if is_same and len(loss) >= _SMOOTH and np.ptp(loss) == 0 and _outputs_something(validation) and not np.ptp(rates):
        return "no_update", (
            f"The training loss is exactly {trained:.6g} at every reading, and validation never changes: the model is "
            "not trained. Look for a clamp or a detach() that keeps the gradient from the model, and whether "
            "optimizer.step() is called."
        )
    learned = since is not None and (steps >= since).sum() >= _T["validations"]
    if not learned and (reason := _why_the_losses_part(signals, validation)) is not None:
        return reason
    if since is None or not learned:
        return None
    if not len(losses):
        return memorized_few(signals) or (
            "labels",
            f"The training loss fell to {trained:.3g}, and the error rate did not follow. Either the labels of "
            "training and validation differ, or the decoder of the metric is wrong (its class of blank, its class "
            "table), or the model has memorized its training data. Log the validation loss: it shows which.",
        )
    held_out, best, first = float(np.median(losses[-3:])), float(losses.min()), float(losses[0])
    both = f"The training loss is {trained:.3g}, and the validation loss {held_out:.3g}"
    not_learned = held_out > first and held_out_at[0] < since  # the first one was that of a model without knowledge
    if not_learned and trained > _T["fallen"] * held_out:  # neither is the training
        return None
    hardly = held_out > _T["hardly"] * first and trained > _T["nats"]
    if hardly and held_out < _T["both"] * trained and not _outputs_something(validation):
        return None  # what it knows about the frames is no label, and neither loss has come down since the plateau
    if (held_out < _T["both"] * trained and not not_learned) or held_out < _T["fallen"] * first:
        return "metric", f"{both}: it is learned in both splits, but the error rate is not. {_LOOK}"
    # A decoder that knows nothing has the loss of the start; only wrong statistics make one many times worse.
    is_absurd = best > _T["absurd"] * loss[0] and (_normalises_batches(signals) or not _outputs_something(validation))
    if best < _T["fallen"] * first and not is_absurd:
        return "overfitting", (
            f"{both}, after {best:.3g} at its best: the model has memorized its training data. Add data, augmentation "
            "or dropout."
        )
    if not is_absurd and (reason := memorized_few(signals)) is not None:
        return reason
    if _normalises_batches(signals) or is_absurd:
        subject = "The model normalises by batches" if _normalises_batches(signals) else "If it normalises by batches"
        return "train_eval", (
            f"{both}, as if nothing had been learned. {subject}: in model.eval() it uses running "
            "statistics, which may be wrong. Validate in train mode once. If that is good, look at their momentum, at "
            "padding and at the scale of the inputs; else compare the labels."
        )
    return "labels", (
        f"{both}, as if nothing had been learned. Either the validation labels differ (another class table, shifted by "
        "one, <unk> everywhere), or the model differs in model.eval() (batch norm, padding). Validate on utterances of "
        "the training once, and in train mode. If both are good, the model has memorized its training data."
    )


def why_the_error_contradicts(signals: Table, validation: Table) -> tuple[str, str] | None:
    """Find out whether the last validation loss is so small that the error rate beside it cannot be right.

    Returns:
        Cause and advice; None if the two can both be right.
    """
    _, loss = finite_readings(signals, "loss")
    _, rates = finite_readings(validation, "per")
    _, losses = finite_readings(validation, "loss")
    if not len(loss) or not len(losses) or not len(rates) or not 0 <= losses[-1] < _T["sure"]:
        return None
    if rates[-1] < _T["contradicts"] or losses[-1] > _T["solved"] * loss[0]:
        return None
    return "metric", (
        f"The validation loss is {losses[-1]:.2g}: the right labels are almost certain to the model. So the error rate "
        f"of {rates[-1]:.2g} cannot be right. {_LOOK}"
    )


def memorized_few(signals: Table) -> tuple[str, str] | None:
    """Explain by the size of the corpus what was learned in training only. Curves do not tell this from other labels.

    Returns:
        Cause and advice; None if the training has utterances enough, or goes on to new ones, or nobody counted them.
    """
    _, counts = finite_readings(signals, "different_utterances")
    if not len(counts) or counts[-1] > counts[len(counts) // 2] or counts[-1] >= _T["few_utterances"]:
        return None
    return "overfitting", (
        f"It trains on only {counts[-1]:.0f} different utterances, and memorizes them: what it learns does not hold "
        "for others. Add data. If there are more utterances, look why so few are drawn."
    )


def why_it_parts_at_once(signals: Table, validation: Table) -> tuple[str, str] | None:
    """Explain a validation loss that was above that of training before anything could be learned by heart.

    Returns:
        Cause and advice; None if the model does not normalise by batches, or the losses parted later.
    """
    loss, held_out = finite_readings(signals, "loss"), finite_readings(validation, "loss")
    early = loss.up_to(int(held_out.steps[0]))[-_SMOOTH:] if len(held_out.steps) else loss.values[:0]
    if not _normalises_batches(signals) or not len(early):
        return None
    first, trained = float(held_out.values[0]), float(np.median(early))
    if first < _T["at_once"] * trained or trained < _T["by_heart"] * loss.values[0]:
        return None
    return "train_eval", (
        f"At the first validation the training loss was {trained:.3g}, and the validation loss {first:.3g} already: so "
        "early nothing is learned by heart. The model normalises by batches: in model.eval() it uses running "
        "statistics, which may be wrong. Validate in train mode once. If that is good, look at how the utterances of a "
        "batch are chosen, at the statistics' momentum, at padding and at the scale of the inputs."
    )


def _why_the_losses_part(signals: Table, validation: Table) -> tuple[str, str] | None:
    """Find out what the validation loss shows where the training loss does not yet show that it was learned.

    It needs more readings than the training loss, and an error rate that is not that of a decoder without output.

    Returns:
        Cause and advice; None if the losses do not show it.
    """
    _, loss = finite_readings(signals, "loss")
    _, losses = finite_readings(validation, "loss")
    third, part = len(losses) // 3, len(loss) // 3
    if third < 2 or part < 2 or losses.min() <= 0 or not _outputs_something(validation):
        return None
    first, middle, last = (float(np.median(some)) for some in (losses[:third], losses[third:-third], losses[-third:]))
    if last < _T["fallen"] * first and last < _T["goes_on"] * middle:
        return "metric", (
            f"The validation loss went on falling, from {first:.3g} to {last:.3g}, and the error rate did not follow. "
            + _LOOK
        )
    early, late = float(np.median(loss[part:-part])), float(np.median(loss[-part:]))
    falls = early - late > 3 * noise_of(loss) / math.sqrt(part)
    rises = min(middle - first, last - middle) > 3 * noise_of(losses) / math.sqrt(third)
    if falls and rises and last > _T["parts"] * first:
        return memorized_few(signals) or (
            "labels",
            f"The training loss falls, and the validation loss has risen from {first:.3g} to {last:.3g} since the "
            "first validations: what is learned does not hold for other utterances. Check on a few utterances that "
            "the labels belong to the inputs, in both splits.",
        )
    return None


def other_labels(signals: Table, validation: Table) -> Finding | None:
    """Detect a decoder that has learned its training data with a few labels, and gets others wrong in validation."""
    loss, losses = finite_readings(signals, "loss"), finite_readings(validation, "loss")
    # If a training blew up at once, only its first loss is that of the start.
    start = float(min(loss.values[0], np.median(loss.values[:_SMOOTH]))) if len(loss.values) else math.nan
    for step, rate in zip(*finite_readings(validation, "per"), strict=True):
        recent = loss.up_to(int(step))[_SMOOTH:][-_SMOOTH:]
        # A loss that may be negative, as a log-likelihood, has no share of its start.
        if rate < _LEARNED or not len(recent) or not 0 <= np.median(recent) < _T["few_labels"] * start:
            continue
        held_out = losses.up_to(int(step))[-1:]
        if len(held_out) and held_out[0] < _T["both"] * np.median(recent):  # the labels of both splits are learned
            continue
        narrow = narrow_output_since(signals, int(step))
        if narrow is None or narrow[1]:  # only blank: then the loss is low for another reason
            continue
        return Finding(
            kind="mode_collapse",
            cause="labels",
            onset_step=narrow[0],
            detected_step=int(step),
            signal="per",
            value=float(rate),
            expected="well below 1",
            advice=f"The training loss fell to {np.median(recent) / start:.0%} of its start, but the decoder outputs "
            f"one or two phonemes, and the validation error rate is {rate:.2f}. The labels of training and validation "
            "differ: compare the labels and the class tables of both splits.",
        )
    return None


def _fell_since(signals: Table, step: int, trained: float) -> bool:
    """Whether the training loss fell far since that step. One that may be negative has no share of its past."""
    loss = finite_readings(signals, "loss")
    then = loss.up_to(step + loss.distance(step))  # a log may have its readings next to the validations
    then = then[-min(_SMOOTH, 1 + len(then) // 10) :]
    return len(then) > 0 and 0 <= trained < _T["fallen"] * float(np.median(then))


def is_far_from_training(signals: Table, validation: Table, share: float = _T["by_heart"]) -> bool:
    """Return whether the validation loss is many times the training loss, or rose from the first on while that fell.

    Args:
        signals: A row per training step.
        validation: A row per validation.
        share: The training loss is far below the validation loss if it is less than this share of it.
    """
    _, loss = finite_readings(signals, "loss")
    _, losses = finite_readings(validation, "loss")
    if len(loss) < _SMOOTH or not len(losses):
        return False
    trained, held_out = float(np.median(loss[-_SMOOTH:])), float(np.median(losses[-3:]))
    if not 0 <= trained < _T["small"] * loss.max():
        return False
    only_rose = losses.min() > _T["at_first"] * losses[0] and held_out > _T["rose"] * losses[0]
    return trained < share * held_out or (only_rose and trained < _T["apart"] * held_out)


def _learned_since(signals: Table, validation: Table) -> int | None:
    """The step since which the training loss is below the blank plateau, not only below its start; None if it is not.

    The plateau may lie anywhere between the first loss and a few per cent of it. What the decoder outputs tells best;
    else a loss of less than a nat, or a second fall after the plateau. On the plateau, a decoder outputs nothing. One
    that does has left it early, if its loss is a small share of the first.
    """
    loss, information = finite_readings(signals, "loss"), finite_readings(signals, "frame_information")
    if len(loss.values) < 3 or np.median(loss.values[-_SMOOTH:]) < 0:  # negative, as log-likelihoods may be
        return None
    if len(information.values):
        return _since(information.steps, running_median(information.values, 3) >= _SPOKE)
    _, blank = finite_readings(signals, "blank_fraction")
    if len(blank) and np.median(blank[-_SMOOTH:]) > THRESHOLDS["collapsed"]["blank"]:
        return None
    if loss.values[0] < _T["nats"] and not _outputs_something(validation):
        return None  # it is divided by something, and may be long on its way to the plateau
    smooth = running_median(loss.values, max(_SMOOTH, len(loss.values) // 50))
    low = smooth < _T["nats"]
    if len(smooth) >= _T["late_readings"]:
        low |= smooth < _T["late"] * smooth[len(smooth) // 3]  # by then, the first fall is over
        early = smooth[len(smooth) // 10]
        low |= _outputs_something(validation) & (smooth < np.minimum(_T["late"] * early, _T["small"] * loss.values[0]))
    return _since(loss.steps, low)


def _outputs_something(validation: Table) -> bool:
    """Whether most error rates in the second half differ from the 1 of a decoder without output."""
    _, rates = finite_readings(validation, "per")
    return bool(np.mean(np.abs(rates[len(rates) // 2 :] - 1) > _T["silent"]) > 0.5) if len(rates) else False


def _since(steps: Steps, holds: NDArray[np.bool_]) -> int | None:
    """The step since which it holds up to the end; None if it does not."""
    count = count_at_end(holds)
    return int(steps[-count]) if count else None


def _normalises_batches(signals: Table) -> bool:
    _, batch_norm = finite_readings(signals, "batch_norm")
    return len(batch_norm) > 0 and bool(batch_norm[-1])

"""Wrong inputs of the CTC loss: axes, lengths, labels and targets from which no optimizer can learn.

A few utterances that CTC cannot align do no harm if the loss leaves them out (`zero_infinity`). Then they are evidence.
They are a finding if they make the loss or its gradient NaN or infinite, or if they are many.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stability.diagnosis.finding import Finding, Floats, Steps, earliest, finite_readings, readings
from stability.diagnosis.table import Table

BELOW_ZERO = -1e-3  # a loss that is rounded is not below this
_LEARNED_RATE, _LEARNED_LOSS = 0.25, 1.0  # an error rate and a validation loss, in nats, below which labels are learned
LEAST = 3  # utterances of a batch that tell something if all of them are infeasible
# Shares of the utterances from which on they are no exception.
_MANY = {"infeasible_targets": 0.1, "empty_targets": 0.5}
_CHANCE = 0.002  # at most, that their true share is only half as large
_OFTEN = 3  # readings below 0; after so many, one more is no chance
_POSITIVE = 1.0  # nats; a loss that began above this and falls below 0 is no log-likelihood
_UNLEARNED = 0.95  # an error rate from which on nothing has been learned


class _Fault(NamedTuple):
    """A fault of the loss's inputs: its cause in one word, what it is, and what mends it."""

    cause: str
    what: str
    mend: str


_ALWAYS_WRONG = {
    "axes_swapped": _Fault(
        "axes_swapped",
        "The logits have their frames before their batch: there are as many lengths or labels as their second axis is "
        "long",
        "Give the Monitor (batch, frames, classes), and CTC's loss in PyTorch (frames, batch, classes)",
    ),
    "lengths_too_long": _Fault(
        "lengths_too_long",
        "{utterances} {have} more frames than the logits have",
        "Give the lengths after the subsampling, which are those of the logits and not those of the inputs, and the "
        "logits as (batch, frames, classes)",
    ),
    "labels_out_of_range": _Fault(
        "label_out_of_range",
        "{utterances} {have} a label that is no class of the logits",
        "The decoder needs a class for each label and one for blank. Padding does not count as labels",
    ),
    "blanks_in_labels": _Fault(
        "blank_in_labels",
        "{utterances} {have} the class of blank among the labels, which CTC puts between labels",
        "Shift the labels by one, or give blank a class of its own. If the loss uses another class for blank than the "
        "Monitor, give it to both. If the blanks are padding, the label counts are too large: look whether the lengths "
        "of inputs and labels are swapped",
    ),
}
ALWAYS_WRONG = frozenset(_ALWAYS_WRONG)  # the signals of which one utterance is a fault
_WRONG_IF_MANY = {
    "infeasible_targets": _Fault(
        "infeasible_target",
        "CTC cannot align {utterances}: there must be as many frames as labels, and one more between equal labels",
        "Leave such utterances out, or make the frames shorter (a smaller stride)",
    ),
    "empty_targets": _Fault(
        "empty_target",
        "{utterances} {have} no labels",
        "Leave such utterances out, or divide by at least 1 where the loss is divided by the number of labels",
    ),
}


def ctc_inputs(signals: Table, validation: Table) -> Finding | None:
    """Detect the first step at which the inputs of the CTC loss are wrong, or the loss is negative."""
    found = [_always_wrong(signals, name) for name in _ALWAYS_WRONG]
    for name in _WRONG_IF_MANY:
        found += [_spoilt_loss(signals, name), _many(signals, name)]
    return earliest([*found, _negative_loss(signals, validation)])


def _always_wrong(signals: Table, name: str) -> Finding | None:
    row = _first_above_0(signals, name)
    return None if row is None else _finding(_ALWAYS_WRONG[name], name, int(row.steps[0]), row[name][0])


def _spoilt_loss(signals: Table, name: str) -> Finding | None:
    """A loss or gradient that is not finite at the first step with such utterances. Later ones have other reasons."""
    row = _first_above_0(signals, name)
    if row is None or not _is_spoilt(row) or _is_not_finite(row, "input_max"):
        return None
    effect = "The loss or its gradient is not finite. "
    return _finding(_WRONG_IF_MANY[name], name, int(row.steps[0]), row[name][0], effect)


def _many(signals: Table, name: str) -> Finding | None:
    """So many such utterances among all so far, or in whole batches, that they are no exceptions."""
    if not {name, "utterances"} <= {*signals.names} or not (signals[name] > 0).any():
        return None
    signals = signals.take(np.isfinite(signals[name]) & np.isfinite(signals["utterances"]))
    counts, sizes = signals[name].astype(np.float64), signals["utterances"].astype(np.float64)
    bad, seen = counts.cumsum(), sizes.cumsum()
    many = (bad >= _MANY[name] * seen) & (_chance_of_as_many(bad, seen, _MANY[name] / 2) < _CHANCE)
    whole = (counts >= sizes) & (sizes >= LEAST)
    many |= whole if name == "infeasible_targets" else whole & np.append(False, whole[:-1])
    if not many.any():
        return None
    row = int(many.argmax())
    onset = int(signals.steps[(counts > 0).argmax()])
    share = f"That is {100 * bad[row] / seen[row]:.3g}% of the utterances so far. "
    return _finding(_WRONG_IF_MANY[name], name, onset, bad[row], share, detected=int(signals.steps[row]))


def _negative_loss(signals: Table, validation: Table) -> Finding | None:
    """A loss below 0 of a decoder with CTC, or of a training whose error rate stays at the start.

    A log-likelihood is negative, too. But what is trained with it learns, has no blank, and is negative from the start.
    So may be the sum of a CTC loss and another term, such as the entropy of the outputs, once the labels are learned.
    """
    steps, loss = finite_readings(signals, "loss")
    below = np.flatnonzero(loss < BELOW_ZERO)
    if not len(below):
        return None
    onset = int(steps[below[0]])
    if is_learned(validation, onset):
        return None
    detected: int | None = onset
    if "blank_fraction" not in signals.names:
        detected = _fell_below_0(steps, loss, validation) if loss[0] > _POSITIVE else _not_learned(validation, onset)
    if detected is None:
        return None
    return Finding(
        kind="bad_data",
        cause="negative_loss",
        onset_step=onset,
        detected_step=detected,
        signal="loss",
        value=float(loss[below[0]]),
        expected="0 or more",
        advice=f"The loss is {loss[below[0]]:.3g}, but the CTC loss of probabilities is never below 0. Either the "
        "logits are not normalised (give the loss logits.log_softmax(-1)) or labels contain the class of blank.",
    )


def is_learned(validation: Table, step: int) -> bool:
    """Return whether the last validation up to that step shows learned labels, and a CTC loss that is not negative."""
    rate, loss = (finite_readings(validation, name).up_to(step)[-1:] for name in ("per", "loss"))
    return len(rate) > 0 and len(loss) > 0 and bool(rate[0] < _LEARNED_RATE and 0 <= loss[0] < _LEARNED_LOSS)


def _fell_below_0(steps: Steps, loss: Floats, validation: Table) -> int | None:
    """The step at which a positive loss has been below 0 often enough, in a training with error rates."""
    below, validated = steps[loss < BELOW_ZERO], finite_readings(validation, "per").steps
    if len(below) <= _OFTEN or not len(validated):
        return None
    return max(int(below[_OFTEN]), int(validated[0]))


def _not_learned(validation: Table, since: int) -> int | None:
    """The step of the second validation since then, if no validation up to it has learned anything."""
    steps, rates = finite_readings(validation, "per")
    later = steps[steps >= since]
    if len(later) < 2 or (rates[steps <= later[1]] < _UNLEARNED).any():
        return None
    return int(later[1])


def _finding(
    fault: _Fault, name: str, onset: int, count: float, effect: str = "", *, detected: int | None = None
) -> Finding:
    utterances = "1 utterance" if count == 1 else f"{count:.0f} utterances"
    what = fault.what.format(utterances=utterances, have="has" if count == 1 else "have")
    return Finding(
        kind="bad_data",
        cause=fault.cause,
        onset_step=onset,
        detected_step=onset if detected is None else detected,
        signal=name,
        value=float(count),
        expected="none",
        advice=f"{what}. {effect}{fault.mend}.",
    )


def _chance_of_as_many(bad: NDArray[np.float64], seen: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Bound the chance of so many bad utterances among those seen if their true share were `share` (Chernoff)."""
    found = np.maximum(bad / np.maximum(seen, 1), share)
    rest = 1 - found
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = found * np.log(found / share) + np.where(rest > 0, rest * np.log(rest / (1 - share)), 0)
    chance: NDArray[np.float64] = np.exp(-seen * distance)
    return chance


def _first_above_0(signals: Table, name: str) -> Table | None:
    rows = np.flatnonzero(signals[name] > 0)[:1] if name in signals.names else np.zeros(0, np.intp)
    return signals.take(slice(rows[0], rows[0] + 1)) if len(rows) else None


def _is_spoilt(row: Table) -> bool:
    """Whether the loss or the gradient is not finite, and not because fp16 overflows."""
    _, scale = readings(row, "loss_scale")
    return _is_not_finite(row, "loss") or (_is_not_finite(row, "grad_norm") and not (scale > 1).any())


def _is_not_finite(row: Table, name: str) -> bool:
    return not np.isfinite(readings(row, name)[1]).all()

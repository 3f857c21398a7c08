"""Why a training makes no progress. The optimizer's signals show it, if they were recorded."""

import math

import numpy as np

from stability.diagnosis.finding import THRESHOLDS, Floats, finite_readings, noise_of, update_in_words
from stability.diagnosis.table import Table

_T = THRESHOLDS["collapsed"]
_FELL = 0.05  # a learning rate that fell below this share of its largest value has fallen
_SHRANK = 0.7  # times their norm before; weights that got so small have shrunk
_GREW = 3.0  # times their first norm; weights that grew so much have lost what they were initialised for
# Sum of the sizes of all updates, over that of the weights,
_FAR = 1.0  # within which any training gets away from the start,
_ENOUGH = 0.4  # and within which it does if the updates are still large
_NEAR_START = 0.7  # share of the first loss; a training that did not get below it has not even begun,
_EVENLY = 0.2  # if each half of the way made at least this share of its fall
_FEW = 2  # readings, of whose median at least the noise is the smaller
_TINY = 1e-6  # a learning rate below this is too small for any model, if nothing else is known
_ALWAYS = 5  # readings of exactly 0 that are no chance
_MANY = 0.3  # share of the parameters without a gradient or an optimizer that explains why nothing is learned
_UNTRAINED = (
    ("unoptimized", "not_in_optimizer", "are in no optimizer. Make it from all parameters that should be trained."),
    ("no_gradient", "no_gradient", "have no gradient. Look for a detach(), no_grad() or argmax before the loss."),
)
_TO_LOG = {
    "lr": "the learning rate",
    "update_ratio": "the size of the updates over that of the weights",
    "grad_norm": "the gradient norm",
}


def why_no_progress(signals: Table, validation: Table, step: int) -> tuple[str, str]:
    """Find out why a training does not learn, from what the optimizer did up to a step.

    Returns:
        Cause and advice. The cause is `no_evidence` if too little was recorded.
    """
    sizes = finite_readings(signals, "update_ratio")
    steps, update = (column[: np.searchsorted(sizes.steps, step, "right")] for column in sizes)
    weights = finite_readings(signals, "weight_norm").up_to(step)
    rates = finite_readings(signals, "lr").up_to(step)
    if len(weights) and (decayed := why_shrunk(float(weights.max()), float(weights[-1]))) is not None:
        return decayed
    if (advice := clipped_before_unscaling(signals, step)) is not None:
        return "precision", advice
    for name, cause, what in _UNTRAINED:
        share = finite_readings(signals, name).up_to(step)[-1:]
        if len(share) and share[0] >= _MANY:
            return cause, f"{share[0]:.0%} of the parameters {what}"
    if silent := _without_gradient(signals, step):
        return "no_gradient", (
            f"The gradient is exactly 0 in {', '.join(silent)}. Look for weights that all begin at 0, a detach() or "
            "no_grad() behind these layers, and for units that are always off."
        )
    largest = float(update.max(initial=0))
    if len(weights) and weights[-1] > _GREW * weights[0] and largest > THRESHOLDS["exploded"]["update"]:
        return "rate_too_high", (
            f"Updates were up to {update_in_words(largest)}, and the weights have grown from {weights[0]:.3g} to "
            f"{weights[-1]:.3g}: the lr was too high, and such weights learn no more. Start again with a lower lr."
        )
    frozen = finite_readings(signals, "frozen").up_to(step)[-1:]
    if len(frozen) and frozen[0] >= _MANY:
        return "no_gradient", (
            f"{frozen[0]:.0%} of the parameters are frozen (requires_grad=False), and the others learn nothing alone. "
            "If the frozen ones were not trained before, train them. Otherwise check on a few utterances that the "
            "labels belong to the inputs, and try a higher lr."
        )
    size = float(np.median(update[-3:])) if len(update) else math.nan
    path = float(update.mean()) * int(steps[-1] - steps[0]) if len(update) else 0.0
    if path > _FAR or (size > 3 * _T["small_update"] and path > _ENOUGH):
        return "no_information", (
            f"Updates are {update_in_words(float(np.median(update)))}, which is enough to learn. So look at the data: "
            "check on a few utterances that the labels belong to the inputs."
        )
    if size > 3 * _T["small_update"]:
        return (
            "no_evidence",
            "Training has hardly begun: updates are large enough, but there were few of them. Train for longer.",
        )
    if path > _ENOUGH and rates[-1:].size and rates[-1] < 0.5 * rates.max():  # the schedule ends with small steps
        return "no_evidence", (
            f"All updates together are {path:.2g} times as large as the weights, which may be enough to learn, or not. "
            "Train for longer, or try a higher lr. If neither helps, look at the data."
        )
    if not math.isnan(size) or len(finite_readings(signals, "epsilon_dominance").up_to(step)):
        return "step_too_small", _small_step_advice(signals, step, size)
    fell_early = len(rates) > 1 and rates[len(rates) // 2] < _FELL * rates.max()
    if len(rates) and (fell_early or rates.max() < _TINY):
        fell = f"has fallen early from {rates.max():.2g} to" if fell_early else "is"
        return "step_too_small", f"The lr {fell} {rates[-1]:.2g}, which is too small to go on learning. Raise it."
    if len(rates) and (creeping := _creeps(signals, validation, step)) is not None:
        return "step_too_small", (
            f"The loss falls steadily, but only from {creeping[0]:.3g} to {creeping[1]:.3g}: it has not even reached "
            "the blank plateau, which usually takes some hundred steps. Raise the lr, and "
            "look whether the clip or epsilon makes the steps so small."
        )
    return "no_evidence", _what_to_log(signals, step)


def _without_gradient(signals: Table, step: int) -> list[str]:
    """The parts of the model whose gradient was exactly 0 at every step, while that of another part was not."""
    names = [name for name in signals.names if name.startswith("grad_norm.")]
    norms = {name.removeprefix("grad_norm."): finite_readings(signals, name).up_to(step) for name in names}
    silent = [part for part, values in norms.items() if len(values) >= _ALWAYS and not values.any()]
    return silent if len(silent) < len(norms) else []


def _creeps(signals: Table, validation: Table, step: int) -> tuple[float, float] | None:
    """The loss in the first and in the last third if it falls evenly, and has not come far; None otherwise.

    A training whose steps are large enough falls at once to the blank plateau, whatever its labels, and rests there.
    The first training loss shows whether it did. The validation loss, if there is one, has less noise.
    """
    loss, held_out = (finite_readings(table, "loss").up_to(step) for table in (signals, validation))
    smoother = held_out if len(held_out) else loss
    if min(len(loss), len(smoother)) < 3 * _FEW or loss.min() <= 0:
        return None
    start = float(np.median(loss[: 1 + len(loss) // 100]))
    (early, _, late), (first, middle, last) = _thirds(loss), _thirds(smoother)
    fell_at_once = start - early > max(3 * noise_of(loss), early - late)
    fall, noise = first - last, noise_of(smoother) / math.sqrt(_FEW)
    evenly = min(first - middle, middle - last) > _EVENLY * fall and fall > 3 * noise
    return (first, last) if evenly and not fell_at_once and late > _NEAR_START * start else None


def _thirds(values: Floats) -> tuple[float, float, float]:
    third = len(values) // 3
    first, middle, last = (np.median(part) for part in (values[:third], values[third:-third], values[-third:]))
    return float(first), float(middle), float(last)


def why_shrunk(before: float, now: float) -> tuple[str, str] | None:
    """Return cause and advice if the norm of the weights is much smaller than before; else None."""
    if now >= _SHRANK * before:
        return None
    return "decay", (
        f"The weights have shrunk from {before:.3g} to {now:.3g}: the weight decay is stronger than the gradients. "
        "Lower it."
    )


def _what_to_log(signals: Table, step: int) -> str:
    missing = [what for name, what in _TO_LOG.items() if not len(finite_readings(signals, name).up_to(step))]
    return (
        "What was recorded does not show why. Look at the inputs and targets of one batch, and log "
        f"{' and '.join(missing) or 'more'}, or watch the training with stability.Monitor, which measures all this."
    )


def _small_step_advice(signals: Table, step: int, size: float) -> str:
    names = ("epsilon_dominance", "lr", "effective_lr")
    share, rate, effective = (finite_readings(signals, name).up_to(step) for name in names)
    if not len(share) or not len(rate) or not len(effective):
        return (
            "The optimizer's state was not recorded. Check whether the roots of its second moments are below epsilon, "
            "and whether the lr is still high enough."
        )
    updates = f"Updates are {update_in_words(size)}. " if not math.isnan(size) else ""
    fell = rate[-1] < 0.5 * rate.max()
    if share[-1] < 0.5:
        fallen = f", down from {rate.max():.2g}," if fell else ""
        return f"{updates}Epsilon is not the reason: the lr of {rate[-1]:.2g}{fallen} is too small. Raise it."
    advice = (
        f"{updates}The roots of the second moments are below epsilon for {share[-1]:.0%} of the parameters, so this is "
        f"momentum SGD with lr/ε = {effective[-1]:.2g}."
    )
    if fell:
        return f"{advice} The lr has fallen from {rate.max():.2g} to {rate[-1]:.2g}: let it fall later."
    loss, per_label = (finite_readings(signals, name).up_to(step) for name in ("loss", "loss_per_label"))
    if len(loss) == len(per_label) and len(loss) and np.median(loss - 1.01 * per_label) < 0:
        labels = finite_readings(signals, "labels").up_to(step)
        times = f"{np.median(labels):.2g} times smaller" if len(labels) else "as many times smaller as there are labels"
        advice += f" The loss is a mean per label: its gradients are {times} than those of a sum per utterance."
        return f"{advice} Try a sum per utterance as the loss, a smaller epsilon, or a higher lr."
    return f"{advice} Try a smaller epsilon, or a higher lr."


def clipped_before_unscaling(signals: Table, step: int) -> str | None:
    """Return advice if the applied gradient is always as small as the clip's limit divided by the loss scale."""
    scale, applied = (finite_readings(signals, name).up_to(step) for name in ("loss_scale", "applied_norm"))
    applied = applied[applied > 0]
    if len(applied) < 3 or not len(scale) or scale[-1] <= 1:
        return None
    middle = float(np.median(applied))
    limit = middle * float(scale[-1])
    if middle > 0.01 or not 0.01 < limit < 1000 or np.ptp(applied[-3:]) > 0.05 * middle:
        return None
    return (
        f"The applied gradient always has the norm {middle:.2g}, which is {limit:.3g} divided by the loss scale of "
        f"{scale[-1]:.10g}: it is clipped before it is unscaled. Call scaler.unscale_(optimizer) before the clip."
    )

"""The trainings of the field corpus: small CTC trainings that go well, or wrong in the ways that people report.

A recipe describes a training, and never its result: `labels` decides by the result whether a fault did harm.
Thresholds are set on `field_design`. `field_test` has other seeds, another task, other models and optimizers, and
families that `field_design` lacks. `field_second_test` has what both of them lack; `second_recipes` makes it.
`field_third_test` has what all three lack; `third_recipes` makes it.
`field_fourth_test` has what those four lack; `fourth_recipes` makes it.
`field_fifth_test` has what all five lack; `fifth_recipes` makes it.
`field_sixth_test` has what all six lack; `sixth_recipes` makes it.
`field_seventh_test` has what all seven lack; `seventh_recipes` makes it.
Nothing in the detectors may be set on a test half.
"""

from dataclasses import replace

import numpy as np

from experiments.detection.field.fifth_recipes import FIFTH_TEST, fifth_base
from experiments.detection.field.fourth_recipes import FOURTH_TEST, fourth_base
from experiments.detection.field.recipe import Draw, FieldRecipe, Half, Kind, between, late, one_of
from experiments.detection.field.second_recipes import SECOND_TEST, second_base
from experiments.detection.field.seventh_recipes import SEVENTH_TEST, seventh_base
from experiments.detection.field.sixth_recipes import SIXTH_TEST, sixth_base
from experiments.detection.field.third_recipes import THIRD_TEST, third_base

_SEEDS: dict[Half, int] = {  # the first of each
    "field_design": 0,
    "field_test": 1000,
    "field_second_test": 2000,
    "field_third_test": 3000,
    "field_fourth_test": 4000,
    "field_fifth_test": 5000,
    "field_sixth_test": 6000,
    "field_seventh_test": 7000,
}


def field_recipes() -> list[FieldRecipe]:
    """Return all recipes, in a fixed order: first the half `field_design`."""
    drawn = []
    halves: dict[Half, dict[Kind, int]] = {
        "field_design": _DESIGN,
        "field_test": _TEST,
        "field_second_test": SECOND_TEST,
        "field_third_test": THIRD_TEST,
        "field_fourth_test": FOURTH_TEST,
        "field_fifth_test": FIFTH_TEST,
        "field_sixth_test": SIXTH_TEST,
        "field_seventh_test": SEVENTH_TEST,
    }
    for half, families in halves.items():
        for kind, count in families.items():
            family = kind.__name__.strip("_")
            for seed in range(_SEEDS[half], _SEEDS[half] + count):
                draw = np.random.default_rng([seed, *family.encode()])
                drawn.append(kind(_base(family, half, seed, draw), draw))
    return drawn


def _base(family: str, half: Half, seed: int, draw: Draw) -> FieldRecipe:
    """Draw a healthy training of that half."""
    if half == "field_test":
        return _test_base(family, half, seed, draw)
    if half == "field_second_test":
        return second_base(family, half, seed, draw)
    if half == "field_third_test":
        return third_base(family, half, seed, draw)
    if half == "field_fourth_test":
        return fourth_base(family, half, seed, draw)
    if half == "field_fifth_test":
        return fifth_base(family, half, seed, draw)
    if half == "field_sixth_test":
        return sixth_base(family, half, seed, draw)
    if half == "field_seventh_test":
        return seventh_base(family, half, seed, draw)
    return FieldRecipe(
        family,
        half,
        seed,
        model=one_of(draw, "gru", "gru", "conv"),
        units=one_of(draw, 24, 32, 48),
        batch=one_of(draw, 4, 8, 16),
        lr=one_of(draw, 1e-3, 3e-3, 6e-3),
        noise=one_of(draw, 0.7, 1.2),
        warmup=one_of(draw, 1, 50, 200),
        schedule=one_of(draw, "constant", "cosine", "linear"),
        reduction=one_of(draw, "per_utterance_sum", "per_label_mean"),
    )


def _test_base(family: str, half: Half, seed: int, draw: Draw) -> FieldRecipe:
    return FieldRecipe(
        family,
        half,
        seed,
        task="long",
        model=one_of(draw, "lstm", "attention", "conv"),
        units=one_of(draw, 32, 48),
        batch=one_of(draw, 6, 12),
        optimizer=one_of(draw, "adamw", "radam"),
        lr=one_of(draw, 3e-3, 6e-3),
        noise=one_of(draw, 0.6, 0.9),
        warmup=one_of(draw, 20, 100, 300),
        schedule=one_of(draw, "constant", "cosine"),
        clip=one_of(draw, 1.0, 5.0, None),
        reduction=one_of(draw, "per_utterance_sum", "per_label_mean"),
    )


# Healthy families of `field_design`.


def _plain(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    made = replace(r, percent=draw.random() < 0.3)
    match draw.integers(4):
        case 0:
            return replace(made, optimizer="sgd", lr=one_of(draw, 0.03, 0.1), reduction="per_label_mean", clip=5.0)
        case 1:
            return replace(made, optimizer="rmsprop", lr=1e-3)
    return made


def _late_plateau(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Adam with epsilon 0.1 is momentum SGD: its steps are small, and it leaves the blank plateau late."""
    lr = between(draw, 5e-4, 5e-3) * (5 if r.reduction == "per_label_mean" else 1)
    return replace(r, epsilon=0.1, lr=lr, schedule="constant", batch=8)


def _overflow_skipped(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loss scale is too large now and then: the gradient overflows, and the step is skipped."""
    return replace(r, half_gradients=True, strength=one_of(draw, 50, 150, 400), schedule="constant")


def _rate_blip(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    made = replace(late(r, draw), fault="rate_blip", span=one_of(draw, 3, 10, 30))
    return replace(made, strength=between(draw, 5, 20), onset=made.onset - 500)


def _bad_batch(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    made = replace(late(r, draw), fault="bad_batch", strength=between(draw, 10, 1000))
    return replace(made, onset=made.onset - 400)


def _restart(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The job starts again from its checkpoint without the optimizer's state, and warms up again."""
    return replace(late(r, draw), fault="restart", strength=one_of(draw, 0.0, 3.0), warmup=one_of(draw, 1, 100))


def _hard_task(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The noise leaves little to hear: it converges at a high error rate."""
    return replace(r, noise=one_of(draw, 1.9, 2.3), batch=16, schedule="cosine", lr=one_of(draw, 3e-3, 6e-3))


def _small_batch(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, batch=2, noise=0.7)


def _cyclic(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, schedule="cyclic")


# Faulty families of `field_design`.


def _rate_from_start(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate is far too high from the start."""
    if draw.random() < 0.5:
        made = replace(r, optimizer="sgd", lr=between(draw, 5, 100))
    else:
        made = replace(r, lr=between(draw, 0.1, 3))
    clip = one_of(draw, None, None, 10.0)
    return replace(made, fault="rate_start", clip=clip, schedule="constant", half_logits=draw.random() < 0.5)


def _rate_somewhat_high(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The accumulated loss is not divided, so the step is several times too large: it never gets anywhere."""
    made = replace(r, optimizer="sgd", reduction="per_label_mean", clip=None, schedule="constant")
    return replace(made, lr=between(draw, 2, 8), fault="rate_start", model="gru")


def _explosion_into_nan(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It has learned, then the loss grows over some 10 to 400 steps and ends in NaN."""
    made = replace(late(r, draw), clip=None, half_logits=draw.random() < 0.8, stop_after=one_of(draw, 5, 300))
    if draw.random() < 0.5:
        return replace(made, fault="weight_drift", strength=between(draw, 0.01, 0.3))
    return replace(made, fault="rate_grows", strength=between(draw, 0.02, 0.5), optimizer=one_of(draw, "adamw", "sgd"))


def _explosion_cut(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The log ends in the middle of an explosion."""
    made = replace(late(r, draw), clip=None, span=one_of(draw, 2, 12, 120, 260, 450))
    if draw.random() < 0.5:
        return replace(made, fault="weight_drift_cut", strength=between(draw, 0.008, 0.02))
    return replace(made, fault="rate_jump_cut", strength=between(draw, 30, 300))


def _ramp(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Loss and gradient grow over 30 to 300 steps, then stay high or become NaN."""
    span = one_of(draw, 30, 100, 300)
    made = replace(late(r, draw), fault="weight_drift", span=span, strength=between(draw, 100, 1000) ** (1 / span) - 1)
    return replace(made, clip=None, half_logits=draw.random() < 0.3, stop_after=200)


def _rate_jump(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate jumps, and the loss stays high without becoming NaN."""
    made = replace(late(r, draw), fault="rate_jump", clip=one_of(draw, None, 10.0))
    return replace(made, strength=between(draw, 30, 1000))


def _rate_rises(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate rises slowly, until the training loses what it had learned."""
    made = replace(late(r, draw), fault="rate_ramp", onset=int(draw.integers(300, 800)), clip=one_of(draw, 1.0, 10.0))
    return replace(made, span=2000 - made.onset, strength=between(draw, 8, 60))


def _overfitting(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    made = replace(r, utterances=one_of(draw, 16, 32, 64), fresh_noise=False, noise=one_of(draw, 0.8, 1.2))
    return replace(made, units=64, weight_decay=0.0, schedule="constant", lr=one_of(draw, 3e-3, 6e-3))


def _channels_lost(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Most input channels are lost, in training and in validation: part of what it had learned is gone for good."""
    return replace(late(r, draw), fault="channels_lost", strength=one_of(draw, 2, 3), model="gru")


def _shuffled_late(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, inputs and labels no longer belong together."""
    return replace(late(r, draw), fault="shuffled_labels")


def _no_gradient(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loss is cut off from the model: gradients are 0, or there are none."""
    return replace(r, fault=one_of(draw, "gradient_zero", "gradient_none", "frozen"), weight_decay=0.0)


def _not_in_optimizer(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The optimizer was built for another copy of the model."""
    return replace(r, fault="not_in_optimizer")


def _rate_zero(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, fault="rate_zero", lr=0.0)


def _all_infeasible(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Too few frames for every target, which `zero_infinity` hides."""
    return replace(r, fault="all_infeasible", weight_decay=0.0)


def _masked_nan(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loss becomes NaN, at once or after an explosion, and the trainer logs 0.0 for it."""
    made = replace(late(r, draw), stop_after=600, clip=None)
    if draw.random() < 0.5:
        return replace(made, fault="masked_nan")
    return replace(made, fault="masked_explosion", half_logits=True, strength=between(draw, 0.01, 0.05))


def _shuffled_labels(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, fault="shuffled_labels")


def _sorted_inputs(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Inputs are sorted by length within the batch, labels are not."""
    return replace(r, fault="sorted_inputs", batch=one_of(draw, 8, 16))


def _other_labels(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The validation labels have another class table."""
    return replace(r, fault=one_of(draw, "labels_permuted", "labels_shifted", "labels_unknown"))


def _half_other_labels(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Half of the validation utterances have another class table."""
    return replace(r, fault="half_labels_shifted", lr=3e-3, schedule="cosine")


def _decoder_blank(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The decoder takes another class for blank than the loss."""
    return replace(r, fault="decoder_blank")


def _metric_at_one(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The metric compares what is never equal: it is 1 at every validation."""
    return replace(r, fault="metric_at_one")


def _evaluation_mode(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Batch norm's running statistics do not follow: bad in evaluation, good in training."""
    return replace(r, fault="norm_frozen", model="conv_norm", lr=3e-3)


def _blank_in_labels(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, fault="blank_in_labels", reduction="per_label_mean")


def _not_normalised(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Logits go into the CTC loss without log_softmax."""
    return replace(r, fault="not_normalised", lr=one_of(draw, 1e-4, 1e-3), schedule="constant")


def _step_too_small(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    if draw.random() < 0.5:
        made = replace(r, epsilon=0.1, lr=between(draw, 1e-6, 3e-5))
    else:
        made = replace(r, lr=between(draw, 1e-7, 1e-5))
    return replace(made, fault="small_step")


def _too_short(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It ends in the warm-up, or after a few steps."""
    steps, warmup = one_of(draw, (12, 1), (60, 1), (40, 4000), (120, 4000), (400, 4000))
    return replace(r, fault="short", steps=steps, warmup=warmup, lr=1e-3, schedule="constant")


def _clip_before_unscale(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    made = replace(r, half_gradients=True, strength=2000, clip=1.0, epsilon=one_of(draw, 1e-3, 0.1))
    return replace(made, fault="clip_before_unscale", schedule="constant")


def _decay(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    made = late(r, draw) if draw.random() < 0.5 else r
    return replace(made, fault="decay", strength=between(draw, 5, 40), lr=3e-3)


def _fatal_batch(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """One batch has far too much weight, and nothing limits its step."""
    made = replace(late(r, draw), fault="bad_batch", strength=between(draw, 3e3, 1e5), clip=None)
    return replace(made, optimizer="sgd", lr=0.03, reduction="per_label_mean")


def _nan_input(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, fault="nan_input", onset=one_of(draw, 0, 37, 411, 1230), stop_after=one_of(draw, 5, 300))


def _infeasible_target(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, fault="infeasible", onset=one_of(draw, 0, 37, 411, 1230), stop_after=one_of(draw, 5, 300))


def _empty_target(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """An utterance without labels, in a loss that is divided by the number of labels."""
    made = replace(r, fault="empty_target", onset=one_of(draw, 3, 230, 911), stop_after=one_of(draw, 5, 300))
    return replace(made, reduction="per_label_mean")


def _nan_gradient(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loss is finite, and its gradient is not."""
    return replace(r, fault="nan_gradient", onset=int(draw.integers(100, 1500)), stop_after=one_of(draw, 5, 300))


# Healthy families of `field_test`.


def _longer_task(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    made = replace(r, percent=draw.random() < 0.3)
    match draw.integers(4):
        case 0:
            return replace(made, optimizer="adafactor", lr=0.01)
        case 1:
            return replace(made, optimizer="sgd", lr=0.05, reduction="per_label_mean", clip=5.0)
    return made


def _warm_restarts(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate falls to nearly nothing and starts again, four times."""
    return replace(r, schedule="restarts")


def _harder_data(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, training data are augmented: the training loss rises, the validation is as before."""
    return replace(late(r, draw), fault="augmented", strength=one_of(draw, 1.5, 2.0))


def _silent_batches(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """For some steps the inputs are silent."""
    made = replace(late(r, draw), fault="silent_batches", span=one_of(draw, 5, 25), clip=1.0)
    return replace(made, onset=made.onset - 200)


def _reduction_changed(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, the loss is given in another unit: per utterance instead of per label, or the other way."""
    return replace(late(r, draw), fault="reduction_changed")


def _fine_tuned(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It begins with a trained model: low losses from the first step on."""
    return replace(r, pretrained=1200, lr=one_of(draw, 1e-4, 5e-4), optimizer="adamw")


def _long_plateau(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    made = replace(r, optimizer="sgd", reduction="per_label_mean", schedule="constant", clip=5.0)
    return replace(made, lr=between(draw, 4e-3, 2e-2))


def _always_clipped(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, clip=0.1)


# Faulty families of `field_test`.


def _base_rate_after_restart(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The job starts again without optimizer state and schedule, at a base rate that the schedule had divided."""
    return replace(late(r, draw), fault="restart", strength=between(draw, 20, 300))


def _forgets_what_it_was_given(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It begins with a trained model, at a rate that destroys it."""
    made = replace(r, pretrained=1200, optimizer="adamw", warmup=one_of(draw, 1, 300), schedule="constant")
    return replace(made, fault="rate_start", lr=between(draw, 0.05, 0.5))


def _other_optimizer_rate(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    made = replace(r, clip=None, fault="rate_start", schedule="constant")
    match draw.integers(3):
        case 0:
            return replace(made, optimizer="radam", lr=between(draw, 0.2, 2))
        case 1:
            return replace(made, optimizer="adafactor", lr=between(draw, 0.5, 5))
    return replace(made, optimizer="sgd", lr=between(draw, 5, 50))


def _jump_of_the_rate(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    made = replace(late(r, draw), fault="rate_jump", optimizer=one_of(draw, "adamw", "radam"))
    return replace(made, strength=between(draw, 30, 300))


def _drift_into_nan(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    made = replace(late(r, draw), fault="weight_drift", clip=None, half_logits=True, stop_after=one_of(draw, 5, 400))
    return replace(made, strength=between(draw, 0.01, 0.2))


def _sign_flip(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, the loss is maximised."""
    return replace(late(r, draw), fault="sign_flip", clip=one_of(draw, None, 5.0))


def _not_zeroed(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, gradients add up."""
    made = replace(late(r, draw), fault="not_zeroed", clip=None, optimizer="sgd", reduction="per_label_mean")
    return replace(made, lr=0.05)


def _rate_climbs_away(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    made = replace(late(r, draw), fault="rate_ramp", onset=int(draw.integers(300, 800)), clip=5.0)
    return replace(made, span=2000 - made.onset, strength=between(draw, 20, 100))


def _overflow_forever(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loss scale is far too large and is never reduced: every step is skipped."""
    return replace(r, half_gradients=True, strength=10**6, fault="scale_stuck", clip=None, optimizer="adamw")


def _log_of_zero(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The logarithm of probabilities in half precision: those that underflow become infinite."""
    return replace(r, fault="log_of_zero", stop_after=one_of(draw, 5, 400), clip=5.0)


def _log_energy_of_silence(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The logarithm of the energy of digital silence is minus infinity."""
    return replace(r, fault="inf_input", onset=one_of(draw, 0, 53, 804), stop_after=one_of(draw, 5, 400))


def _repeats_need_blanks(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A target of one label over and over has as many labels as frames, and needs blanks between them."""
    return replace(r, fault="repeats", onset=one_of(draw, 0, 53, 804), stop_after=one_of(draw, 5, 400))


def _repeats_not_merged(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The decoder drops blanks, and does not merge repeats."""
    return replace(r, fault="repeats_not_merged")


def _labels_reversed(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The validation labels are in reverse order."""
    return replace(r, fault="labels_reversed")


def _features_not_normalised(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Only training normalises the features."""
    return replace(r, fault="features_not_normalised", strength=one_of(draw, 8.0, 15.0))


def _rate_falls_at_every_step(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A schedule that is meant for epochs is stepped at every batch."""
    return replace(r, fault="rate_falls", strength=one_of(draw, 0.7, 0.9, 0.97), warmup=1, optimizer="adamw")


def _frames_mixed(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """`reshape` instead of `transpose` mixes the frames of different utterances."""
    return replace(r, fault="frames_mixed")


def _dead_input(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, fault="dead_input")


def _step_never_taken(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """`optimizer.step()` is never called."""
    return replace(r, fault="no_step")


def _memorised(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    made = replace(r, utterances=one_of(draw, 12, 24, 48), fresh_noise=False, weight_decay=0.0)
    return replace(made, units=64, schedule="constant", model=one_of(draw, "conv", "attention"))


def _forgotten(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, it trains on another recording room only, and forgets the first."""
    return replace(late(r, draw), fault="other_room", model=one_of(draw, "conv", "lstm"))


def _interrupted(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It was stopped in its warm-up."""
    return replace(r, fault="short", steps=one_of(draw, 15, 90, 250), warmup=5000, schedule="constant")


_DESIGN: dict[Kind, int] = {
    _plain: 10,
    _late_plateau: 7,
    _overflow_skipped: 5,
    _rate_blip: 4,
    _bad_batch: 4,
    _restart: 5,
    _hard_task: 5,
    _small_batch: 2,
    _cyclic: 2,
    _rate_from_start: 5,
    _rate_somewhat_high: 2,
    _explosion_into_nan: 7,
    _explosion_cut: 6,
    _ramp: 4,
    _rate_jump: 4,
    _rate_rises: 6,
    _overfitting: 5,
    _channels_lost: 3,
    _shuffled_late: 2,
    _no_gradient: 3,
    _not_in_optimizer: 2,
    _rate_zero: 1,
    _all_infeasible: 2,
    _masked_nan: 4,
    _shuffled_labels: 3,
    _sorted_inputs: 2,
    _other_labels: 5,
    _half_other_labels: 2,
    _decoder_blank: 3,
    _metric_at_one: 3,
    _evaluation_mode: 3,
    _blank_in_labels: 2,
    _not_normalised: 2,
    _step_too_small: 5,
    _too_short: 5,
    _clip_before_unscale: 2,
    _decay: 3,
    _fatal_batch: 3,
    _nan_input: 2,
    _infeasible_target: 2,
    _empty_target: 2,
    _nan_gradient: 2,
}
_TEST: dict[Kind, int] = {
    _longer_task: 10,
    _warm_restarts: 4,
    _harder_data: 4,
    _silent_batches: 4,
    _reduction_changed: 4,
    _fine_tuned: 4,
    _long_plateau: 5,
    _always_clipped: 3,
    _base_rate_after_restart: 5,
    _forgets_what_it_was_given: 4,
    _other_optimizer_rate: 5,
    _jump_of_the_rate: 4,
    _drift_into_nan: 5,
    _sign_flip: 3,
    _not_zeroed: 3,
    _rate_climbs_away: 4,
    _overflow_forever: 2,
    _log_of_zero: 3,
    _log_energy_of_silence: 3,
    _repeats_need_blanks: 2,
    _repeats_not_merged: 4,
    _labels_reversed: 3,
    _features_not_normalised: 4,
    _rate_falls_at_every_step: 5,
    _frames_mixed: 3,
    _dead_input: 3,
    _step_never_taken: 2,
    _memorised: 4,
    _forgotten: 4,
    _interrupted: 3,
}

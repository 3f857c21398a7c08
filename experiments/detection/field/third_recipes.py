"""The trainings of the third test half: kinds that none of the halves before it has.

They were chosen from what people report of trainings with CTC in public: speech, lines of text, spoken commands,
recordings of a brain. About half of the families look odd, and nothing is wrong with them.
"""

from dataclasses import replace

from experiments.detection.field.recipe import Draw, FieldRecipe, Half, Kind, between, one_of

_STEPS = 1200


def third_base(family: str, half: Half, seed: int, draw: Draw) -> FieldRecipe:
    """Draw a healthy training."""
    made = FieldRecipe(
        family,
        half,
        seed,
        task=one_of(draw, "lines", "spikes", "keywords"),
        model=one_of(draw, "crnn", "quartz", "stacked_gru", "post_norm", "tcn"),
        units=one_of(draw, 24, 32),
        batch=one_of(draw, 6, 8),
        noise=one_of(draw, 0.4, 0.6),
        utterances=600,
        steps=_STEPS,
        warmup=one_of(draw, 30, 100),
        schedule=one_of(draw, "constant", "poly", "eden", "three_stages"),
        clip=one_of(draw, None, 2.0, 10.0),
        reduction=one_of(draw, "per_utterance_sum", "per_label_mean"),
    )
    louder = {"lines": 1.0, "spikes": 1.6, "keywords": 2.0}  # noise with which a task is as hard as the others
    made = replace(made, noise=made.noise * louder[made.task])
    if made.task == "lines" and made.schedule == "poly":  # the rate would be low before it has learned
        made = replace(made, schedule="three_stages")
    return _optimized(made, draw)


def _optimized(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Draw an optimizer, with a rate at which it learns."""
    match draw.integers(5):
        case 0:
            return replace(r, optimizer="adamax", lr=one_of(draw, 5e-3, 1e-2))
        case 1:
            return replace(r, optimizer="novograd", lr=one_of(draw, 2e-3, 4e-3), weight_decay=1e-3)
        case 2:
            return replace(r, optimizer="rms_momentum", lr=one_of(draw, 6e-4, 1e-3), clip=2.0)
    return _adam(r, draw)


def _adam(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, optimizer=one_of(draw, "adam", "noam_adam"), lr=one_of(draw, 4e-3, 6e-3), weight_decay=0.0)


def _sgd(r: FieldRecipe, lr: float) -> FieldRecipe:
    return replace(r, optimizer="sgd", lr=lr, reduction="per_label_mean", weight_decay=0.0)


def _midway(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Let it happen when the training has learned."""
    return replace(r, onset=int(draw.integers(550, 800)), schedule="constant")


# Healthy families.


def _three_tasks(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, percent=draw.random() < 0.3)


def _focal_loss(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Utterances that are easy have less weight."""
    return replace(_adam(r, draw), fault="focal", strength=one_of(draw, 1.0, 2.0), reduction="per_label_mean")


def _running_mean(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It logs the mean loss since the start of the epoch, as progress bars do."""
    return replace(r, fault="running_mean", span=one_of(draw, 50, 150))


def _loss_per_frame(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loss is divided by the frames, so it is small from the start."""
    return replace(_adam(r, draw), reduction="per_frame_mean")


def _layers_skipped(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Whole layers are left out now and then: the training loss has two levels."""
    made = replace(_adam(r, draw), fault="layers_skipped", strength=one_of(draw, 0.2, 0.4))
    return replace(made, model=one_of(draw, "quartz", "tcn"))


def _speed_changed(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Each batch is read faster or slower."""
    return replace(r, fault="speed_changed", zero_infinity=True)


def _utterances_joined(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, two utterances make one, and the loss of an utterance is twice as large."""
    return replace(_midway(_adam(r, draw), draw), fault="utterances_joined", reduction="per_utterance_sum")


def _gradient_noise(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Noise is added to the gradient: its norm never falls."""
    made = replace(_adam(r, draw), fault="gradient_noise", strength=one_of(draw, 0.02, 0.05), clip=None)
    return replace(made, schedule="poly", reduction="per_utterance_sum")


def _one_day_per_batch(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A batch is from one day of recordings, and the days differ."""
    return replace(r, task="spikes", fault="one_day_per_batch")


def _halved_on_plateau(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate is halved each time when the error rate has not fallen at two validations."""
    return replace(_adam(r, draw), fault="halved_on_plateau", schedule="constant")


def _rate_vanishes(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate falls by a millionth: it has long converged when nothing changes any more."""
    return replace(_adam(r, draw), schedule="vanishing", lr=8e-3, warmup=30, task=one_of(draw, "spikes", "keywords"))


def _mostly_spaces(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Every other label is a space."""
    return replace(_adam(r, draw), task="spaced")


def _one_command(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """An utterance has one label, and nearly all its frames are blank."""
    return replace(_adam(r, draw), task="commands", model=one_of(draw, "crnn", "post_norm"))


def _late_by_low_rate(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It leaves the blank plateau in the second half of its time."""
    made = replace(r, schedule="constant", warmup=300, task=one_of(draw, "lines", "spikes"), noise=0.2)
    match draw.integers(3):
        case 0:
            return replace(made, optimizer="adamax", lr=between(draw, 1e-3, 2e-3))
        case 1:
            return replace(made, optimizer="noam_adam", lr=between(draw, 5e-4, 1e-3))
    return replace(_sgd(made, between(draw, 0.03, 0.08)), clip=2.0)


def _zero_head(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The head begins with zeros, so the encoder has no gradient at the first step."""
    return replace(r, fault="zero_head")


def _blank_first(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The head begins with a strong bias for blank."""
    return replace(_adam(r, draw), fault="blank_first", strength=one_of(draw, 4.0, 8.0))


def _scale_starts_too_high(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loss scale begins so high that the first steps are all skipped."""
    made = replace(_adam(r, draw), half_gradients=True, fault="scale_starts_too_high", model="quartz")
    return replace(made, strength=one_of(draw, 28, 36, 50), clip=10.0)


def _few_validated(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The validation has so few utterances that the error rate jumps."""
    return replace(r, fault="few_validated", strength=one_of(draw, 4, 6), noise=0.4)


def _noisier_validation(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The validation is recorded in noise: its loss stays far above that of training."""
    return replace(_adam(r, draw), fault="noisier_validation", strength=one_of(draw, 0.4, 0.6), noise=0.4)


def _whole_lines(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """An utterance is wrong if one label is: the error rate stays at 1 long after the loss began to fall."""
    return replace(_adam(r, draw), fault="whole_lines", task=one_of(draw, "lines", "spikes"), noise=0.2)


def _dropout_ends(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The last part of the training is without dropout: the training loss falls at once."""
    return replace(_midway(_adam(r, draw), draw), fault="dropout_ends", dropout=one_of(draw, 0.3, 0.5), units=32)


def _unused_decoder(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The model has a second decoder, which has no part in the loss and so no gradient."""
    return replace(_adam(r, draw), fault="unused_decoder")


def _fixed_front(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The first layer keeps its random filters."""
    return replace(_adam(r, draw), fault="fixed_front", model=one_of(draw, "quartz", "tcn", "crnn"), units=32)


def _padding_heard(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """All utterances are said to be as long as the longest of the batch."""
    return replace(r, fault="padding_heard")


def _solved_early(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Without noise the loss is soon next to nothing, where it leaps tenfold and does no harm."""
    made = replace(_adam(r, draw), noise=0.02, schedule="constant", lr=6e-3)
    return replace(made, model=one_of(draw, "crnn", "quartz", "tcn"), task=one_of(draw, "lines", "keywords"))


def _state_reset(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The optimizer begins anew at each epoch."""
    made = replace(_adam(r, draw), fault="state_reset", span=one_of(draw, 150, 300), lr=3e-3)
    return replace(made, schedule=one_of(draw, "poly", "eden"))


def _pruned_a_little(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The smallest weights are removed."""
    return replace(_midway(_adam(r, draw), draw), fault="pruned_a_little", strength=one_of(draw, 0.3, 0.5))


def _array_moved(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, each channel has the signal of another: it learns again what it had known."""
    made = replace(_adam(r, draw), task="spikes", fault="array_moved", strength=one_of(draw, 3, 11))
    return replace(_midway(made, draw), onset=int(draw.integers(350, 500)), noise=0.2)


def _never_unscaled(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loss is multiplied by a scale that nobody takes away again. Adam does not mind."""
    return replace(_adam(r, draw), fault="never_unscaled", clip=None)


# Faulty families.


def _no_warmup(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Layer norm after the sum, a high rate, and no warm-up: it never leaves blank."""
    made = replace(_adam(r, draw), fault="rate_start", model="post_norm", warmup=1, schedule="constant")
    return replace(made, lr=between(draw, 0.05, 0.5))


def _rate_for_many_gpus(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate is multiplied by the number of GPUs, after a warm-up, and the batch is as small as before."""
    made = replace(_adam(r, draw), fault="rate_peaks", warmup=one_of(draw, 300, 600), schedule="constant")
    return replace(made, lr=5e-3 * one_of(draw, 64, 256))


def _milestones_multiply(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """At each milestone the rate rises by the factor by which it should fall."""
    made = replace(_adam(r, draw), fault="stairs_up", strength=one_of(draw, 5, 10), schedule="constant")
    return replace(made, onset=_STEPS // 2)


def _killed_after_a_milestone(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate rises at a milestone, and the log ends soon after."""
    made = replace(_midway(_adam(r, draw), draw), fault="stairs_up_cut", clip=None, span=one_of(draw, 1, 25, 160, 320))
    return replace(made, strength=one_of(draw, 100, 1000))


def _rate_below_zero(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate falls on a line that does not end at 0."""
    made = replace(_adam(r, draw), fault="rate_below_zero", schedule="constant", half_logits=draw.random() < 0.4)
    return replace(made, onset=int(draw.integers(500, 800)), stop_after=100)


def _warmup_never_ends(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate rises as in a warm-up, for ever."""
    made = replace(_adam(r, draw), fault="warmup_never_ends", warmup=one_of(draw, 15, 30), schedule="constant")
    return replace(made, clip=one_of(draw, None, 2.0), half_logits=draw.random() < 0.5, stop_after=200)


def _second_moments_lost(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A checkpoint is restored with second moments of 0, and with the number of its steps."""
    made = replace(_midway(_adam(r, draw), draw), fault="second_moments_lost", lr=1e-2, clip=None)
    return replace(made, model=one_of(draw, "crnn", "stacked_gru", "post_norm"))


def _never_unscaled_without_adam(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loss is multiplied by a scale that nobody takes away again. SGD minds."""
    made = replace(_sgd(r, 0.05), fault="never_unscaled", clip=None, half_logits=draw.random() < 0.5)
    return replace(made, stop_after=one_of(draw, 5, 300))


def _temperature_falls(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The logits are divided by a temperature that falls at every step."""
    made = replace(_midway(r, draw), fault="temperature_falls", half_logits=True, stop_after=one_of(draw, 5, 300))
    return replace(made, strength=between(draw, 0.02, 0.2))


def _empty_mask(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A second loss is a mean over masked frames, of which a batch has none."""
    made = replace(r, fault="empty_mask", onset=int(draw.integers(100, 1000)))
    return replace(made, stop_after=one_of(draw, 5, 300))


def _cut_to_one_frame(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Hardly a frame is left of an utterance, and its labels are all there."""
    made = replace(r, fault="cut_to_one_frame", task=one_of(draw, "lines", "spikes"))
    return replace(made, onset=one_of(draw, 0, 90, 640), stop_after=one_of(draw, 5, 300))


def _normaliser_poisoned(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The running mean of the features becomes NaN, and each batch with it. The trainer skips them, and logs 0."""
    return replace(r, fault="normaliser_poisoned", onset=int(draw.integers(300, 800)), stop_after=300)


def _lengths_divided_twice(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The model divides the lengths by its subsampling, and so does the trainer."""
    made = replace(_adam(r, draw), fault="lengths_divided_twice", strength=one_of(draw, 4, 8), zero_infinity=True)
    return replace(made, task=one_of(draw, "lines", "spikes"))


def _characters_instead_of_pieces(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Each piece of a word is spelled with three characters, for which there are too few frames."""
    made = replace(_adam(r, draw), fault="characters", zero_infinity=True)
    return replace(made, task=one_of(draw, "lines", "spikes"))


def _space_is_blank(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The tokenizer's space has the number of blank."""
    return replace(_adam(r, draw), fault="space_is_blank", task="spaced")


def _right_to_left(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Transcripts are read from the other side than the image."""
    made = replace(r, fault="right_to_left", task=one_of(draw, "lines", "spikes"))
    return replace(made, model=one_of(draw, "quartz", "tcn", "stacked_gru"))


def _one_row_off(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Each utterance has the transcript of the one before it in the list."""
    return replace(_adam(r, draw), fault="one_row_off", task=one_of(draw, "lines", "spikes"))


def _features_near_zero(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The samples are divided by their largest value twice: next to nothing is heard."""
    made = replace(_adam(r, draw), fault="features_near_zero", strength=1e-5, model=one_of(draw, "tcn", "stacked_gru"))
    return replace(made, schedule="poly")


def _biases_only(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The optimizer has the group of parameters without decay, and not the other."""
    return replace(_adam(r, draw), fault="biases_only", model=one_of(draw, "crnn", "stacked_gru", "tcn"))


def _zero_start(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """All weights begin at 0, so nothing but the last bias has a gradient."""
    return replace(_adam(r, draw), fault="zero_start", model=one_of(draw, "crnn", "stacked_gru", "tcn"))


def _never_accumulated(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A step is made after more batches than there are, so the gradient only grows."""
    return replace(r, fault="never_accumulated")


def _decay_in_adam(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A decay that AdamW would bear is part of Adam's gradient."""
    return replace(r, optimizer="adam", lr=4e-3, fault="decay", strength=between(draw, 0.5, 4.0), clip=10.0)


def _rate_ends_too_early(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The schedule is made for far fewer steps: the rate is 0 before it has learned."""
    made = replace(_adam(r, draw), fault="rate_ends", span=one_of(draw, 40, 80, 120), warmup=30, schedule="constant")
    return replace(made, lr=2e-3, task=one_of(draw, "lines", "spikes"))


def _loss_divided_too_often(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loss is a mean over everything there is, so SGD's steps are next to nothing."""
    return replace(_sgd(r, 0.05), fault="loss_divided", strength=between(draw, 1e-4, 1e-3), clip=2.0)


def _padding_in_metric(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The metric counts the padding of the labels as labels."""
    return replace(_adam(r, draw), fault="padding_in_metric")


def _accuracy_as_error(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The accuracy is logged as the error rate."""
    return replace(_adam(r, draw), fault="accuracy_as_error")


def _hypotheses_in_other_order(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Hypotheses and references are gathered in different orders."""
    return replace(_adam(r, draw), fault="hypotheses_in_other_order")


def _validates_first_checkpoint(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Validation loads the first checkpoint each time."""
    return replace(_adam(r, draw), fault="first_checkpoint", average=1.0, model=one_of(draw, "crnn", "tcn"))


def _validation_resampled(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The validation data have another sampling rate."""
    return replace(_adam(r, draw), fault="validation_resampled")


def _few_sentences(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A few sentences, read again and again."""
    made = replace(_adam(r, draw), fault="few_sentences", span=one_of(draw, 8, 16, 24), schedule="constant")
    return replace(made, task=one_of(draw, "lines", "spikes"), units=32)


def _pruned_too_far(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Nearly all weights are removed."""
    return replace(_midway(_adam(r, draw), draw), fault="pruned_too_far", strength=one_of(draw, 0.93, 0.97))


THIRD_TEST: dict[Kind, int] = {
    _three_tasks: 10,
    _focal_loss: 3,
    _running_mean: 3,
    _loss_per_frame: 3,
    _layers_skipped: 3,
    _speed_changed: 3,
    _utterances_joined: 3,
    _gradient_noise: 3,
    _one_day_per_batch: 3,
    _halved_on_plateau: 3,
    _rate_vanishes: 3,
    _mostly_spaces: 2,
    _one_command: 3,
    _late_by_low_rate: 4,
    _zero_head: 2,
    _blank_first: 2,
    _scale_starts_too_high: 2,
    _few_validated: 3,
    _noisier_validation: 3,
    _whole_lines: 3,
    _dropout_ends: 2,
    _unused_decoder: 2,
    _fixed_front: 2,
    _padding_heard: 2,
    _solved_early: 3,
    _state_reset: 2,
    _pruned_a_little: 2,
    _array_moved: 2,
    _never_unscaled: 2,
    _no_warmup: 3,
    _rate_for_many_gpus: 3,
    _milestones_multiply: 3,
    _killed_after_a_milestone: 4,
    _rate_below_zero: 3,
    _warmup_never_ends: 4,
    _second_moments_lost: 2,
    _never_unscaled_without_adam: 3,
    _temperature_falls: 3,
    _empty_mask: 3,
    _cut_to_one_frame: 3,
    _normaliser_poisoned: 2,
    _lengths_divided_twice: 2,
    _characters_instead_of_pieces: 2,
    _space_is_blank: 2,
    _right_to_left: 2,
    _one_row_off: 2,
    _features_near_zero: 2,
    _biases_only: 2,
    _zero_start: 2,
    _never_accumulated: 2,
    _decay_in_adam: 3,
    _rate_ends_too_early: 3,
    _loss_divided_too_often: 2,
    _padding_in_metric: 2,
    _accuracy_as_error: 2,
    _hypotheses_in_other_order: 2,
    _validates_first_checkpoint: 2,
    _validation_resampled: 2,
    _few_sentences: 3,
    _pruned_too_far: 3,
}

"""The trainings of the seventh test half: kinds that none of the halves before it has.

It has 55 families with two trainings each, and three new tasks: number plates, bases of DNA that pass a pore, signs.
New are a small VGG, convolutions that are squeezed and gated, attention to frames nearby, and Adam without a schedule.
The families were chosen from what people report of their trainings with CTC, and by how common it is: rates, precision,
data, labels, lengths, decoding, modes, frozen parts, resumed jobs, small corpora. About half of them are healthy, and
look ordinary or odd.
"""

from dataclasses import replace

from experiments.detection.field.recipe import Draw, FieldRecipe, Half, Kind, Model, Task, between, one_of

_NOISE: dict[Task, float] = {"plates": 0.5, "bases": 0.8, "signs": 0.8}
_RATES: dict[Model, float] = {"vgg": 6e-3, "squeezed": 5e-3, "nearby": 4e-3}


def seventh_base(family: str, half: Half, seed: int, draw: Draw) -> FieldRecipe:
    """Draw a healthy training."""
    task: Task = one_of(draw, "plates", "bases", "signs")
    model: Model = one_of(draw, "vgg", "squeezed", "nearby")
    return FieldRecipe(
        family,
        half,
        seed,
        task=task,
        model=model,
        units=one_of(draw, 32, 48),
        batch=one_of(draw, 12, 16),
        noise=_NOISE[task] * one_of(draw, 0.8, 1.2),
        utterances=800,
        steps=one_of(draw, 560, 600),
        lr=_RATES[model] * one_of(draw, 0.8, 1.2),
        warmup=one_of(draw, 20, 60),
        schedule=one_of(draw, "constant", "stable_then_decay", "cosine"),
        clip=one_of(draw, 1.0, 3.0, None),
        reduction=one_of(draw, "per_utterance_sum", "per_label_mean"),
        optimizer=one_of(draw, "adamw", "adamw", "adam", "nadam", "radam"),
    )


def _midway(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Let it happen when the training has learned."""
    made = _soon_learned(r, draw)
    return replace(made, onset=int(draw.integers(270, 330)), schedule="constant", steps=600)


def _soon_learned(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Take a model that leaves the plateau early."""
    return _with(r, one_of(draw, "squeezed", "nearby"))


def _with(r: FieldRecipe, model: Model) -> FieldRecipe:
    return replace(r, model=model, lr=_RATES[model])


def _text(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Take a task with many classes, in which a wrong label is rarely right by chance."""
    task: Task = one_of(draw, "plates", "signs")
    return replace(r, task=task, noise=_NOISE[task])


# Healthy families.


def _plates_bases_and_signs(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, percent=draw.random() < 0.3)


def _schedule_free(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Adam without a schedule, which validates with a mean of its weights."""
    return replace(r, optimizer="schedule_free", lr=one_of(draw, 5e-3, 8e-3), schedule="constant")


def _decayed_at_each_epoch(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """SGD with momentum, whose rate falls by a tenth at each epoch."""
    made = replace(r, schedule="epochs", optimizer="nesterov", lr=one_of(draw, 0.03, 0.06), clip=3.0)
    return replace(made, reduction="per_label_mean")


def _large_batch(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Few large batches, with a higher rate: a smooth loss."""
    made = replace(_soon_learned(r, draw), batch=40, warmup=100)
    return replace(made, lr=1.5 * made.lr, steps=500)


def _one_at_a_time(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Batches of one utterance: the loss leaps from one step to the next."""
    made = replace(_with(r, one_of(draw, "vgg", "nearby")), batch=1, clip=1.0, lr=2e-3)
    return replace(made, noise=0.5 * made.noise, steps=600, reduction="per_label_mean")


def _late_convolutions(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Convolutions, at the rate of a cautious SGD, stay on the blank plateau for a third of their time."""
    made = replace(r, task="plates", model="vgg", optimizer="nesterov", lr=0.01, schedule="constant", steps=600)
    return replace(made, reduction="per_label_mean", clip=3.0, noise=0.3, units=48)


def _blotted(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A block of each image is blotted out, for augmentation."""
    return replace(r, fault="blotted", strength=one_of(draw, 0.0, 1.0))


def _weight_noise(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Each step has its own noise on the weights, so the training loss stays above that of validation."""
    return replace(r, fault="weight_noise", strength=one_of(draw, 0.02, 0.04))


def _old_head_kept(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A trained model is fine-tuned to another alphabet with its old head: the loss begins far too high."""
    made = replace(_text(r, draw), fault="old_head_kept", pretrained=400, schedule="cosine", steps=500)
    return replace(made, reduction="per_label_mean")


def _two_views(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Two views of each recording should give the same: CTC of both, and a second loss for how they differ."""
    return replace(r, fault="consistency", strength=one_of(draw, 0.1, 0.3), batch=10)


def _reconstruction(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The features are to be rebuilt, noise and all: that part of the loss stays high."""
    return replace(r, fault="reconstruction", strength=one_of(draw, 1.0, 3.0), reduction="per_label_mean")


def _preempted(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The job is killed now and then, and resumed from its checkpoint a few steps before."""
    return replace(r, fault="preempted", span=one_of(draw, 70, 110))


def _denoised_gradually(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It begins in loud noise, of which less and less is added."""
    return replace(r, fault="denoised_gradually", strength=one_of(draw, 1.0, 2.0), schedule="constant")


def _hard_examples_first(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Of the utterances that could come next, those with the highest loss are taken."""
    return replace(r, fault="hard_examples_first", utterances=400)


def _logged_running_sum(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It logs the sum of the losses since the last print-out, as a tutorial does that prints it then."""
    return replace(r, fault="logged_running_sum", span=one_of(draw, 10, 25))


def _gain_changes(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Someone turns the gain of the amplifier: the loss leaps, and the model gets used to it."""
    made = replace(_midway(r, draw), fault="gain_changes", strength=one_of(draw, 0.4, 2.5))
    return replace(made, schedule="stable_then_decay")


def _layer_inserted(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The model grows: a new layer is put before the head, and the loss leaps."""
    return replace(_midway(r, draw), fault="layer_inserted")


def _few_levels_from_start(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The weights are rounded in each forward pass, as they will be on the device."""
    return replace(r, fault="quantisation_aware")


def _mixed_lengths(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Half of the recordings are three times as long as the others, and the loss is a sum."""
    return replace(r, fault="mixed_lengths", reduction="per_utterance_sum", utterances=400, batch=8)


def _typos(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Transcripts from the web: one label of twelve is wrong, so the training loss stays high."""
    return replace(_text(r, draw), fault="typos", strength=one_of(draw, 0.06, 0.1))


def _clipped_adaptively(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Each gradient is limited by the length of its weights."""
    return replace(r, fault="clipped_adaptively", strength=one_of(draw, 0.05, 0.2), clip=None)


def _recordings_drift(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The electrodes drift from day to day, and the model follows."""
    return replace(r, fault="recordings_drift", strength=one_of(draw, 0.5, 1.0), schedule="constant")


def _small_but_augmented(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Few recordings with much augmentation: the training loss stays above that of validation."""
    return replace(r, fault="augmented_well", utterances=200, strength=one_of(draw, 0.2, 0.4), schedule="cosine")


def _channels_dropped(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A third of the channels is left out in each utterance, for augmentation."""
    return replace(r, fault="channels_dropped", strength=one_of(draw, 0.2, 0.35))


def _echo(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A trained model is fine-tuned to recordings with an echo, at a tenth of its rate."""
    made = replace(_soon_learned(r, draw), fault="echo", pretrained=400, schedule="cosine", lr=6e-4)
    return replace(made, strength=one_of(draw, 0.5, 0.8))


def _words_scored(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The metric is that of words, which two labels make: it falls late, and is twice the error rate of labels."""
    made = replace(_soon_learned(_text(r, draw), draw), fault="words_scored", schedule="stable_then_decay")
    return replace(made, noise=1.3 * made.noise)


def _momentum_of_another_library(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Batch norm has the momentum of another library, so that its statistics are those of the last batch."""
    return replace(_with(r, "squeezed"), fault="momentum_of_another_library", batch=12)


# Faulty families.


def _sum_instead_of_mean(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loss is a sum, and the rate that of a recipe with a mean."""
    made = replace(_text(r, draw), fault="rate_start", optimizer="nesterov", lr=one_of(draw, 0.5, 1.5), clip=None)
    return replace(made, reduction="per_utterance_sum", schedule="constant", half_logits=draw.random() < 0.5)


def _suggested_rate(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A test of the rate suggests its upper end, and nobody looks at the curve."""
    made = replace(_text(r, draw), fault="rate_start", lr=between(draw, 0.4, 1.5), schedule="constant")
    return replace(made, model=("vgg", "nearby")[r.seed % 2], clip=one_of(draw, 1.0, None))


def _scaled_at_each_resume(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """At each resume the rate is multiplied by the number of GPUs, and saved so."""
    made = replace(
        _text(r, draw), fault="rate_multiplied_at_resume", onset=int(draw.integers(230, 270)), schedule="constant"
    )
    return replace(_with(made, "nearby"), strength=one_of(draw, 4.0, 8.0), steps=600)


def _killed_after_a_resume(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """As in `_scaled_at_each_resume`, and the log ends in the explosion."""
    made = replace(_midway(r, draw), fault="rate_multiplied_at_resume_cut", clip=None, span=(3, 40)[r.seed % 2])
    return replace(_with(made, "nearby"), strength=one_of(draw, 64.0, 256.0))


def _step_without_scaler(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The scaler grows its scale as it should. The step is the optimizer's own, which does not skip an overflow."""
    made = replace(r, fault="step_without_scaler", half_gradients=True, clip=None)
    return replace(made, strength=(20, 60)[r.seed % 2], stop_after=one_of(draw, 5, 120))


def _loud_power_in_half(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The power of the samples is computed in half precision, in which that of a loud recording is infinite."""
    made = replace(r, fault="loud_power_in_half", strength=4e4, onset=one_of(draw, 0, 150, 330))
    return replace(made, stop_after=one_of(draw, 5, 120))


def _all_filtered(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loss leaves out utterances that are too short, and divides by the number of the others, which is 0."""
    made = replace(r, fault="mean_of_none", onset=int(draw.integers(60, 420)))
    return replace(made, stop_after=one_of(draw, 5, 120))


def _sped_up_too_far(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Recordings are sped up for augmentation, some so far that there are fewer frames than labels."""
    made = replace(r, fault="sped_up_too_far", strength=9, onset=one_of(draw, 0, 120, 300))
    return replace(made, stop_after=one_of(draw, 5, 120))


def _last_batch_of_one(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Features are divided by their deviation over the batch, and the last batch of an epoch has one utterance."""
    return replace(r, fault="std_of_one", span=one_of(draw, 67, 100), stop_after=one_of(draw, 5, 120))


def _log_of_log_softmax(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The model returns logarithms, and the loss takes their logarithm."""
    return replace(r, fault="log_of_log_softmax", stop_after=one_of(draw, 5, 120))


def _vocabulary_of_each_worker(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Each worker of the loader makes the class table from a set, whose order is its own."""
    return replace(_text(r, draw), fault="vocabulary_of_each_worker")


def _averaged_over_time(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A mean over the wrong axis: each frame is the mean of the recording."""
    return replace(_text(r, draw), fault="averaged_over_time")


def _references_upper_case(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The metric has references in upper case, and a decoder of lower case."""
    return replace(_soon_learned(r, draw), fault="references_upper_case")


def _special_tokens_shift(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The decoder's table has no special tokens, so each label is named as one a few places further."""
    return replace(_soon_learned(_text(r, draw), draw), fault="special_tokens_shift", strength=one_of(draw, 2.0, 4.0))


def _validation_rotated(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The reader of the validation images does not know how the camera was held: they are upside down."""
    made = replace(_soon_learned(r, draw), fault="validation_rotated", task="plates")
    return replace(made, noise=_NOISE["plates"])


def _validated_in_chunks(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It is trained on whole recordings, and validated as a stream, two frames at a time."""
    return replace(_with(_text(r, draw), "squeezed"), fault="validated_in_chunks")


def _augmentation_cached(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The augmented features of a few dozen recordings are cached, and are the same in each epoch."""
    made = replace(_soon_learned(r, draw), fault="augmentation_cached", fresh_noise=False, utterances=70)
    return replace(made, task="plates", noise=one_of(draw, 0.6, 0.8), weight_decay=0.0, schedule="constant")


def _far_too_wide(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A model that is far too wide for its corpus, with no augmentation, and for far too many epochs."""
    made = replace(_soon_learned(r, draw), fault="far_too_wide", fresh_noise=False, units=128, utterances=90)
    return replace(made, task="signs", noise=one_of(draw, 1.8, 2.2), weight_decay=0.0, schedule="constant", lr=2e-3)


def _unfrozen_outside_optimizer(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The optimizer was given the head while the encoder was frozen. Its gradients come later, and nobody uses them."""
    made = replace(r, fault="unfrozen_outside_optimizer", onset=int(draw.integers(20, 60)), task="plates")
    return replace(made, model=one_of(draw, "vgg", "nearby"))


def _no_gradient_through_codes(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The encoder's outputs are rounded to codes, through which no gradient passes."""
    made = replace(r, fault="rounded_activations", model=one_of(draw, "vgg", "nearby"), task="plates")
    return replace(made, weight_decay=0.0)


def _trains_a_copy(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loss is that of a copy of the model, so the weights that are trained have no gradient."""
    return replace(r, fault="trains_a_copy", weight_decay=0.0)


def _reduced_at_each_batch(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The scheduler waits for a better loss, and is given that of each batch."""
    made = replace(r, fault="reduced_per_batch", strength=one_of(draw, 0.1, 0.3), schedule="constant")
    return replace(made, lr=1e-3, task="plates", noise=_NOISE["plates"])


def _checkpoint_ignored(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """No name in the checkpoint fits, so it begins with random weights, at the rate of a fine-tuning."""
    made = replace(_text(r, draw), fault="small_step", lr=between(draw, 3e-6, 2e-5), clip=1.0)
    return replace(made, schedule=one_of(draw, "cosine", "stable_then_decay"))


def _lengths_are_shares(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The lengths are shares of the longest, which become 0 when the loss makes integers of them."""
    made = replace(r, fault="lengths_are_shares", zero_infinity=r.seed % 2 == 0, weight_decay=0.0)
    return replace(made, stop_after=one_of(draw, 5, 120))


def _masks_accumulate(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, masks are written into the arrays that the loader keeps, until hardly a frame is left."""
    made = replace(_midway(_text(r, draw), draw), fault="masks_accumulate", utterances=100)
    return replace(made, strength=one_of(draw, 0.15, 0.25), onset=int(draw.integers(230, 270)))


def _half_of_the_signs_left(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It goes on with recordings that have half of the signs only, and forgets the others."""
    made = replace(_midway(r, draw), fault="half_of_the_signs_left", onset=int(draw.integers(180, 230)))
    return replace(made, task="signs", noise=_NOISE["signs"])


def _untrained_teacher(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The teacher has random weights, since its checkpoint was not found, and its loss nearly all the weight."""
    made = replace(_text(r, draw), fault="untrained_teacher", strength=one_of(draw, 0.97, 0.985))
    return replace(made, reduction="per_label_mean")


def _unknown_is_blank(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Characters that the table lacks have the number of blank."""
    made = replace(r, task="signs", fault="unknown_is_blank", strength=one_of(draw, 16, 19))
    return replace(made, noise=_NOISE["signs"], zero_infinity=True)


_KINDS: tuple[Kind, ...] = (
    *(_plates_bases_and_signs, _schedule_free, _decayed_at_each_epoch, _large_batch, _one_at_a_time),
    *(_late_convolutions, _blotted, _weight_noise, _old_head_kept, _two_views, _reconstruction, _preempted),
    *(_denoised_gradually, _hard_examples_first, _logged_running_sum, _gain_changes, _layer_inserted),
    *(_few_levels_from_start, _mixed_lengths, _typos, _clipped_adaptively, _recordings_drift),
    *(_small_but_augmented, _channels_dropped, _echo, _words_scored, _momentum_of_another_library),
    *(_sum_instead_of_mean, _suggested_rate, _scaled_at_each_resume, _killed_after_a_resume, _step_without_scaler),
    *(_loud_power_in_half, _all_filtered, _sped_up_too_far, _last_batch_of_one, _log_of_log_softmax),
    *(_vocabulary_of_each_worker, _averaged_over_time, _references_upper_case, _special_tokens_shift),
    *(_validation_rotated, _validated_in_chunks, _augmentation_cached, _far_too_wide, _unfrozen_outside_optimizer),
    *(_no_gradient_through_codes, _trains_a_copy, _reduced_at_each_batch, _checkpoint_ignored),
    *(_lengths_are_shares, _masks_accumulate, _half_of_the_signs_left, _untrained_teacher, _unknown_is_blank),
)
SEVENTH_TEST: dict[Kind, int] = dict.fromkeys(_KINDS, 2)

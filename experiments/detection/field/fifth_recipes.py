"""The trainings of the fifth test half: kinds that none of the halves before it has.

They were chosen, and are as many, as one meets them where people ask about trainings with CTC: fine-tuned and new
recognisers of speech, decoders of neural recordings. About half of the families look odd, and nothing is wrong with
them.
"""

from dataclasses import replace

from experiments.detection.field.recipe import Draw, FieldRecipe, Half, Kind, Task, between, one_of

_STEPS = 800
_NOISE: dict[Task, float] = {"letters": 1.1, "spikes": 1.1, "long": 0.6}


def fifth_base(family: str, half: Half, seed: int, draw: Draw) -> FieldRecipe:
    """Draw a healthy training."""
    task: Task = one_of(draw, "letters", "letters", "spikes", "long")
    made = FieldRecipe(
        family,
        half,
        seed,
        task=task,
        model=one_of(draw, "transformer", "deep_speech", "patches"),
        units=one_of(draw, 32, 48),
        batch=one_of(draw, 8, 12),
        noise=_NOISE[task] * one_of(draw, 0.8, 1.2),
        utterances=600,
        steps=_STEPS,
        warmup=one_of(draw, 50, 100),
        schedule=one_of(draw, "constant", "linear", "cosine"),
        clip=one_of(draw, 1.0, 5.0),
        reduction=one_of(draw, "per_utterance_sum", "per_label_mean"),
    )
    return _adam(made, draw)


def _adam(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, optimizer=one_of(draw, "adamw", "noam_adam"), lr=one_of(draw, 3e-3, 4e-3))


def _midway(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Let it happen when the training has learned."""
    return replace(r, onset=int(draw.integers(380, 480)), schedule="constant")


def _fine_tuned(r: FieldRecipe) -> FieldRecipe:
    return replace(r, pretrained=600, task="letters", noise=0.8, schedule="linear", optimizer="adamw")


# Healthy families.


def _new_encoders(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    made = replace(r, percent=draw.random() < 0.3)
    if draw.random() < 0.25:
        return replace(made, optimizer="nesterov", lr=0.05, reduction="per_label_mean", weight_decay=0.0)
    return made


def _two_rates(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A trained encoder with a low rate, a new head with a high one."""
    return replace(_fine_tuned(r), fault="two_rates", strength=one_of(draw, 0.03, 0.1), lr=5e-3)


def _averaged_at_the_end(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, it validates with the mean of all weights since then."""
    return replace(_midway(r, draw), fault="averaged_at_the_end")


def _small_last_batch(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The last batch of an epoch has one utterance."""
    return replace(r, fault="small_last_batch", span=one_of(draw, 51, 76))


def _spikes_of_a_high_rate(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate is ten times the usual: the loss leaps to several times its level, and comes back."""
    made = replace(r, lr=one_of(draw, 0.04, 0.06), schedule="linear", model=one_of(draw, "patches", "transformer"))
    return replace(made, fault="rate_at_the_edge", clip=None, batch=4, reduction="per_utterance_sum")


def _autocast(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The encoder is computed in bfloat16."""
    return replace(r, fault="autocast", model="transformer")


def _trainer_skips(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A few recordings are broken. The trainer leaves out a batch that has one, and logs the loss of the one before."""
    return replace(r, fault="trainer_skips", span=one_of(draw, 1, 3), model=one_of(draw, "patches", "transformer"))


def _padding_changes(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, batches are padded to twice their length."""
    return replace(_midway(r, draw), fault="padding_changes", model=one_of(draw, "deep_speech", "transformer"))


def _smaller_batch(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It is resumed on a smaller machine, with a quarter of the batch."""
    return replace(_midway(r, draw), fault="smaller_batch", batch=12)


def _best_restored(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """If a validation is not better, it goes back to the best weights and halves the rate."""
    return replace(r, fault="best_restored", schedule="constant", lr=one_of(draw, 4e-3, 8e-3))


def _late_transformer(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A transformer with a low rate and a long warm-up leaves blank late."""
    made = replace(r, model="transformer", schedule="inverse_root", warmup=one_of(draw, 300, 500), noise=0.4)
    return replace(made, lr=between(draw, 4e-4, 7e-4), task=one_of(draw, "letters", "spikes"))


def _gradual_unfreezing(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A trained encoder with a new head. Its layers are trained again one by one, the last first."""
    made = replace(_fine_tuned(r), fault="gradual_unfreezing", lr=2e-3, schedule="constant")
    return replace(made, onset=one_of(draw, 150, 250), span=200)


def _biases_tuned(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A trained model is adapted to another microphone by a new head, its biases and its norms; the rest is frozen."""
    return replace(_fine_tuned(r), fault="biases_tuned", lr=one_of(draw, 5e-3, 1e-2))


def _inner_loss(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The first layer has a CTC loss, too, which remains high. Validation is without it."""
    return replace(r, fault="inner_loss", model=one_of(draw, "transformer", "crnn"))


def _sure_of_its_errors(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The validation loss rises while the error rate still falls or rests."""
    made = replace(r, fault="sure_of_its_errors", fresh_noise=False, weight_decay=0.0, schedule="constant", lr=4e-3)
    made = replace(made, utterances=one_of(draw, 80, 130), model=one_of(draw, "patches", "transformer"))
    return replace(made, task="letters", noise=0.8)


def _too_small_a_model(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """So few units that it comes to rest at a high error rate."""
    made = replace(r, task="letters", schedule="cosine", lr=0.01, noise=0.9)
    return (
        replace(made, model="patches", units=6) if draw.random() < 0.5 else replace(made, model="transformer", units=4)
    )


def _dropout_begins(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, a part of the outputs is dropped: the training loss leaps, that of validation does not."""
    return replace(_midway(r, draw), fault="dropout_begins", dropout=one_of(draw, 0.3, 0.5))


def _logged_smoothly(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It logs a moving average of the loss."""
    return replace(r, fault="logged_smoothly", strength=one_of(draw, 0.98, 0.995))


def _one_batch(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A test whether it can learn one batch, which it validates on, too."""
    return replace(r, fault="one_batch", noise=0.1, schedule="constant", steps=600)


def _sorted_first(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The first epoch goes from the shortest utterances to the longest, the others are shuffled."""
    return replace(r, fault="sorted_first", reduction="per_utterance_sum", utterances=1200, batch=8)


def _stays_in_evaluation(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """After its first validation, the model is never set back to training."""
    return replace(r, fault="stays_in_evaluation", model="deep_speech", dropout=one_of(draw, 0.0, 0.3))


def _references_grouped(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The metric merges double letters in the transcripts, and not in what was decoded."""
    return replace(r, fault="references_grouped", task="letters")


def _bad_shard(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """For some steps transcripts and recordings do not belong together."""
    return replace(_midway(r, draw), fault="bad_shard", span=one_of(draw, 15, 50))


def _table_changes(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """When it is resumed, the class table is made anew, in another order, and it learns which is which."""
    made = replace(_midway(r, draw), fault="table_changes", strength=float(draw.integers(3, 9)), lr=4e-3)
    return replace(made, onset=int(draw.integers(350, 450)), steps=1000)


def _encoder_lost(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """When it is resumed, the names in the checkpoint do not fit, and the encoder is a new one."""
    made = replace(_midway(r, draw), fault="encoder_lost", model=one_of(draw, "patches", "deep_speech"), lr=4e-3)
    return replace(made, onset=int(draw.integers(350, 450)), steps=1000)


def _batch_first_forgotten(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The recurrent layer goes over the utterances of the batch and not over time. The convolutions hear enough."""
    return replace(r, fault="batch_first_forgotten", model=one_of(draw, "patches", "deep_speech"), noise=0.6)


# Faulty families.


def _never_leaves_blank(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate is too high for attention, also after a warm-up."""
    made = replace(r, fault="rate_start", model="transformer", schedule="inverse_root", warmup=100)
    return replace(made, lr=between(draw, 0.4, 2.0), clip=one_of(draw, None, 5.0))


def _peak_of_one_cycle(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It learns while the rate rises, and loses everything at its peak."""
    made = replace(r, fault="peak_too_high", schedule="one_cycle", warmup=1, model="transformer")
    return replace(made, lr=between(draw, 0.45, 0.8), clip=one_of(draw, None, 5.0))


def _rate_from_checkpoint(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A trained encoder with a new head, and the rate with which the training before had ended."""
    return replace(_fine_tuned(r), fault="rate_from_checkpoint", lr=between(draw, 3e-7, 1e-5), schedule="constant")


def _reduced_in_wrong_mode(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate is reduced whenever the error rate has not risen."""
    made = replace(r, fault="reduced_in_wrong_mode", strength=one_of(draw, 0.1, 0.3), schedule="constant")
    made = replace(made, lr=1e-3, model=one_of(draw, "patches", "deep_speech"))
    return replace(made, task=one_of(draw, "letters", "spikes"))


def _warmup_outlasts(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The warm-up is made for a training of many times its length."""
    return replace(r, fault="warmup_outlasts", warmup=one_of(draw, 10000, 25000, 60000), lr=1e-3, schedule="constant")


def _accumulated_sum(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The gradients of several batches are added, and nobody divides by their number."""
    made = replace(r, fault="accumulated_sum", optimizer="nesterov", lr=one_of(draw, 0.3, 0.6), accumulate=4, batch=4)
    return replace(made, reduction="per_label_mean", clip=None, schedule="constant", steps=600, model="patches")


def _cosine_ends_high(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The cosine goes to a rate that is far above the first."""
    made = replace(r, fault="cosine_ends_high", strength=between(draw, 50, 400), schedule="constant", stop_after=100)
    return replace(made, clip=one_of(draw, None, 5.0), half_logits=draw.random() < 0.5)


def _killed_on_its_way_up(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The cosine goes to a rate that is far too high, and the log ends in the explosion."""
    made = replace(r, fault="cosine_ends_high_cut", strength=between(draw, 100, 200), schedule="constant", clip=None)
    return replace(made, span=(3, 40, 120)[r.seed % 3], lr=5e-3, model="transformer")


def _scale_shrinks(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, the gradient overflows at any scale: the scale shrinks, and no step is made any more."""
    made = replace(r, fault="scale_shrinks", half_gradients=True, strength=200, onset=int(draw.integers(20, 90)))
    return replace(made, lr=2e-3)


def _raw_inputs(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The samples are those of the file, with an offset, and in thousands."""
    made = replace(r, fault="raw_inputs", strength=between(draw, 300, 10000), model=one_of(draw, "patches", "crnn"))
    return replace(made, lr=one_of(draw, 1e-3, 3e-3))


def _most_pairs_wrong(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The recordings were cut at wrong times, so most transcripts belong to others."""
    return replace(r, fault="most_pairs_wrong", strength=one_of(draw, 85, 92))


def _cropped(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Recordings are cropped, and their transcripts are not."""
    made = replace(r, fault="cropped", strength=one_of(draw, 14, 18), onset=one_of(draw, 0, 300))
    return replace(made, task="long", stop_after=one_of(draw, 5, 300))


def _gain_of_silence(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Noise is made as loud as the speech, also if the noise is silence."""
    made = replace(r, fault="gain_of_silence", onset=one_of(draw, 0, 110, 520))
    return replace(made, stop_after=one_of(draw, 5, 300))


def _norm_poisoned(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """As in `_trainer_skips`, and batch norm has the broken recordings in its running statistics."""
    return replace(r, fault="norm_poisoned", span=one_of(draw, 1, 3), model="deep_speech")


def _attention_masked(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The mask of attention hides a whole utterance, if it is short: NaN."""
    made = replace(r, fault="attention_masked", model="transformer", onset=int(draw.integers(40, 700)))
    return replace(made, stop_after=one_of(draw, 5, 300))


def _base_frozen(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The encoder is frozen as if it were trained, and has random weights."""
    made = replace(r, fault="base_frozen", model=one_of(draw, "patches", "deep_speech"), weight_decay=0.0)
    return replace(made, task="letters", units=32)


def _kept_for_dropped(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The share of the outputs that should be kept is taken for the one that is dropped."""
    return replace(r, fault="kept_for_dropped", dropout=one_of(draw, 0.95, 0.98))


def _smoothed_away(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loss that pulls towards the uniform distribution has nearly all the weight."""
    return replace(r, fault="smoothed_away", smoothing=one_of(draw, 0.95, 0.99), reduction="per_label_mean")


def _small_corpus(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A few dozen utterances without augmentation."""
    made = replace(r, fault="small_corpus", fresh_noise=False, weight_decay=0.0, schedule="constant", lr=1.5e-3)
    return replace(made, utterances=one_of(draw, 30, 40, 60), noise=1.4, task=one_of(draw, "letters", "spikes"))


def _argmax_over_time(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The decoder takes the best frame of each class, where it should take the best class of each frame."""
    return replace(r, fault="argmax_over_time")


def _validation_without_log(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The features of the validation lack the logarithm."""
    return replace(r, fault="validation_without_log", task="letters")


def _another_day_validated(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The validation is recorded by an array that has moved."""
    return replace(r, fault="another_day_validated", task="spikes", strength=one_of(draw, 2, 7))


def _bounded_logits(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The logits go through tanh, so no class can be likely."""
    return replace(r, fault="bounded_logits", task=one_of(draw, "letters", "long"))


def _forgets_the_first_room(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A trained model is fine-tuned on recordings of another room, and validated on those of the first."""
    return replace(_fine_tuned(r), fault="other_room", lr=one_of(draw, 1e-3, 3e-3))


_OFTEN: tuple[Kind, ...] = (
    *(_spikes_of_a_high_rate, _late_transformer, _sure_of_its_errors),
    *(_never_leaves_blank, _peak_of_one_cycle, _reduced_in_wrong_mode, _warmup_outlasts, _cosine_ends_high),
    *(_killed_on_its_way_up, _raw_inputs, _small_corpus),
)
_TWICE: tuple[Kind, ...] = (
    *(_two_rates, _averaged_at_the_end, _small_last_batch, _autocast, _trainer_skips, _padding_changes),
    *(_smaller_batch, _best_restored, _gradual_unfreezing, _biases_tuned, _inner_loss, _too_small_a_model),
    *(_dropout_begins, _logged_smoothly, _one_batch, _sorted_first, _stays_in_evaluation, _references_grouped),
    *(_bad_shard, _table_changes, _encoder_lost, _batch_first_forgotten),
    *(_rate_from_checkpoint, _accumulated_sum, _scale_shrinks, _most_pairs_wrong, _cropped, _gain_of_silence),
    *(_attention_masked, _base_frozen, _kept_for_dropped, _smoothed_away, _argmax_over_time),
    *(_validation_without_log, _another_day_validated, _bounded_logits, _norm_poisoned),
    _forgets_the_first_room,
)
FIFTH_TEST: dict[Kind, int] = {_new_encoders: 7} | dict.fromkeys(_OFTEN, 3) | dict.fromkeys(_TWICE, 2)

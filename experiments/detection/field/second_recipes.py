"""The trainings of the second test half: kinds that neither of the halves before it has.

They were chosen from what people report of CTC trainings in public: trainings that look broken and are not, too.
"""

from dataclasses import replace

from experiments.detection.field.recipe import Draw, FieldRecipe, Half, Kind, between, late, one_of


def second_base(family: str, half: Half, seed: int, draw: Draw) -> FieldRecipe:
    """Draw a healthy training."""
    made = FieldRecipe(
        family,
        half,
        seed,
        task="words",
        model=one_of(draw, "bigru", "conv_gru", "conv_gru", "conv_gru", "deep_conv", "conformer"),
        units=one_of(draw, 32, 40),
        batch=one_of(draw, 6, 8),
        noise=one_of(draw, 0.4, 0.7),
        warmup=one_of(draw, 50, 200),
        schedule=one_of(draw, "constant", "inverse_root", "linear"),
        clip=one_of(draw, 1.0, 5.0, 20.0),
        reduction=one_of(draw, "per_utterance_sum", "per_label_mean"),
    )
    made = replace(made, warmup=200) if made.schedule == "inverse_root" else made
    return _optimized(made, draw)


def _optimized(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Draw an optimizer, with a rate at which it learns."""
    match draw.integers(6):
        case 0:
            return replace(r, optimizer="nadam", lr=one_of(draw, 2e-3, 4e-3))
        case 1:
            return replace(r, optimizer="adagrad", lr=one_of(draw, 0.02, 0.04))
        case 2:
            return replace(r, optimizer="amsgrad", lr=one_of(draw, 2e-3, 4e-3))
        case 3:
            return replace(r, optimizer="lion", lr=one_of(draw, 6e-4, 1e-3), weight_decay=0.1)
        case 4:
            return _nesterov(r, one_of(draw, 0.03, 0.06))
    return replace(r, lr=one_of(draw, 2e-3, 4e-3))


def _nesterov(r: FieldRecipe, lr: float) -> FieldRecipe:
    return replace(r, optimizer="nesterov", lr=lr, reduction="per_label_mean", weight_decay=1e-5, clip=5.0)


def _adam(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, optimizer=one_of(draw, "adamw", "nadam", "amsgrad"), lr=3e-3, weight_decay=1e-3)


# Healthy families.


def _many_classes(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    if draw.random() < 0.15:
        r = replace(r, optimizer="adadelta", lr=1.0, weight_decay=0.0)
    return replace(r, percent=draw.random() < 0.3)


def _heavy_dropout(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The training loss stays above the validation loss."""
    return replace(_adam(r, draw), dropout=one_of(draw, 0.4, 0.5, 0.6), units=48, noise=0.4)


def _accumulated(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A step has the gradients of several small batches, and logs the loss of the last."""
    return replace(r, accumulate=one_of(draw, 3, 4), batch=2)


def _smoothed_loss(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A second loss keeps the sum far from 0."""
    return replace(r, smoothing=one_of(draw, 0.1, 0.2), reduction="per_label_mean")


def _averaged_weights(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It validates with an average of the weights, which follows late."""
    return replace(r, average=one_of(draw, 0.99, 0.995, 0.997))


def _bad_batch_skipped(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A batch that is broken comes up once or again and again, and the trainer goes on without it."""
    made = replace(r, skips=True, fault="bad_batch_skipped", strength=float(draw.integers(4)))
    made = replace(made, onset=int(draw.integers(50, 900)), span=one_of(draw, 97, 400, 5000))
    return replace(made, reduction="per_label_mean") if made.strength == 3 else made


def _curriculum(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Short utterances come first, so the loss rises when longer ones come."""
    made = replace(_adam(r, draw), fault="curriculum", onset=one_of(draw, 600, 900))
    return replace(made, reduction="per_utterance_sum", clip=20.0)


def _buckets(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Each epoch goes from the shortest utterances to the longest: the loss is a saw."""
    return replace(_adam(r, draw), fault="buckets", reduction="per_utterance_sum", clip=20.0)


def _masked_later(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Frames and channels are masked from some step on."""
    return replace(late(r, draw), fault="masked", strength=one_of(draw, 0.1, 0.2), span=one_of(draw, 2, 4))


def _corpus_extended(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, half of the data are from another microphone."""
    return replace(late(r, draw), fault="corpus_extended", strength=one_of(draw, 2, 5))


def _unfrozen_later(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A trained encoder with a new head. The encoder is trained again from some step on."""
    made = replace(_adam(r, draw), pretrained=800, lr=1e-3, fault="unfrozen_later")
    return replace(made, onset=int(draw.integers(200, 700)))


def _lower_layers_frozen(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A trained encoder, which is never trained again, with a new head."""
    return replace(_adam(r, draw), pretrained=800, fault="lower_layers_frozen", weight_decay=0.0)


def _rolled_back(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate rises for a while and does harm; the weights of an older checkpoint are restored."""
    made = replace(late(r, draw), fault="rolled_back", span=one_of(draw, 10, 40), strength=between(draw, 20, 60))
    return replace(made, onset=made.onset - 300)


def _range_test_stopped(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It begins with a test of the rate, which rises until the loss does. Then it starts again, from new."""
    made = replace(_adam(r, draw), fault="range_test_stopped", span=one_of(draw, 150, 250), clip=None)
    return replace(made, strength=one_of(draw, 0.3, 1.0))


def _stairs(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate falls in steps."""
    return replace(r, schedule="stairs")


def _one_cycle(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate rises for two fifths of the training, to a high value, and falls to nothing."""
    return replace(_adam(r, draw), schedule="one_cycle", lr=one_of(draw, 5e-3, 8e-3), warmup=1)


def _decay_scheduled(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Weight decay grows all along."""
    return replace(r, optimizer="adamw", lr=3e-3, fault="decay_scheduled", strength=one_of(draw, 0.1, 0.3))


def _wrong_transcripts(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A quarter of the transcripts belong to other utterances: the training loss stays high."""
    return replace(_adam(r, draw), fault="wrong_transcripts", strength=one_of(draw, 15, 25))


def _homophones(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Two classes sound alike each, so it converges at a high error rate."""
    return replace(_adam(r, draw), task="homophones", noise=0.4, schedule="linear", units=40)


def _frames_per_batch(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Batches have so many frames, and the loss is their sum: it fluctuates with the number of utterances."""
    made = replace(_adam(r, draw), fault="frames_per_batch", reduction="batch_sum", clip=50.0)
    return replace(made, strength=one_of(draw, 250, 400))


def _late_start(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It leaves the blank plateau late: the rate is low for a long time, or the optimizer is slow."""
    match draw.integers(3):
        case 0:
            return replace(r, optimizer="adagrad", lr=one_of(draw, 3e-3, 5e-3), schedule="constant")
        case 1:
            return replace(_nesterov(r, one_of(draw, 5e-3, 1e-2)), schedule="constant")
    return replace(_adam(r, draw), schedule="late", warmup=one_of(draw, 1200, 1600))


def _stopped_early(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It had converged, and was stopped."""
    return replace(_adam(r, draw), steps=one_of(draw, 800, 1100), schedule="constant", noise=0.4)


def _outliers(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A few utterances are far too loud and have other transcripts: the loss has spikes."""
    return replace(r, fault="outliers", strength=one_of(draw, 1, 2), clip=1.0)


def _few_infeasible(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """CTC cannot align a few utterances, and their loss counts as 0."""
    return replace(r, fault="few_infeasible", strength=one_of(draw, 1, 3), zero_infinity=True)


def _silences(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A tenth of the utterances is silence, with no labels."""
    made = replace(_adam(r, draw), fault="silences", strength=one_of(draw, 5, 10))
    return replace(made, reduction="per_utterance_sum", clip=20.0)


def _large_start(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The weights of the head begin far too large, and so does the loss."""
    return replace(_adam(r, draw), fault="large_start", strength=one_of(draw, 8, 20))


def _head_replaced(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A checkpoint is loaded without its head, which starts again."""
    made = replace(late(_adam(r, draw), draw), fault="head_replaced")
    return replace(made, onset=made.onset - 200)


def _infinite_in_validation(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """CTC cannot align one validation utterance, so the validation loss is infinite."""
    return replace(r, fault="validation_loss_infinite")


# Faulty families.


def _rate_peaks_too_high(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A long warm-up, in which it learns until the rate is too high."""
    made = replace(_adam(r, draw), schedule="inverse_root", warmup=one_of(draw, 700, 1000, 1300), fault="rate_peaks")
    return replace(made, lr=between(draw, 0.15, 1), model=one_of(draw, "conv_gru", "bigru"))


def _range_test_goes_on(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A test of the rate, which nothing stops."""
    made = replace(_adam(r, draw), fault="range_test_goes_on", span=one_of(draw, 700, 1300, 1900), clip=None)
    return replace(made, steps=made.span, strength=one_of(draw, 1.0, 10.0), half_logits=draw.random() < 0.3)


def _momentum_too_high(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """With so much momentum a step is a thousand times the rate."""
    made = replace(_nesterov(r, one_of(draw, 0.1, 0.3)), fault="momentum_too_high", clip=None, schedule="constant")
    return replace(made, strength=one_of(draw, 0.995, 0.999))


def _unfrozen_too_fast(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """When its encoder is trained again, it has a rate of its own, which is far too high."""
    made = replace(
        _adam(r, draw), pretrained=800, lr=1e-3, fault="unfrozen_too_fast", strength=between(draw, 500, 10000)
    )
    made = replace(made, model=one_of(draw, "conv_gru", "bigru", "deep_conv"))
    return replace(late(made, draw), onset=int(draw.integers(400, 900)))


def _loud_utterance(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """One utterance was read in another unit, and nothing limits its step."""
    made = replace(late(r, draw), fault="loud_utterance", strength=between(draw, 30, 3e4))
    return replace(_nesterov(made, 0.015), clip=None, model=one_of(draw, "deep_conv", "conformer"))


def _decay_of_wrong_sign(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The weights grow at every step by the same share."""
    made = replace(late(r, draw), optimizer="adamw", lr=3e-3, fault="decay_of_wrong_sign", clip=1.0)
    return replace(made, strength=between(draw, 2, 12), half_logits=draw.random() < 0.5, stop_after=200)


def _masks_nearly_all(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The width of the masks is in another unit: hardly a frame is left in training."""
    return replace(r, fault="masked", strength=one_of(draw, 0.998, 0.9995), span=2)


def _truncated_transcripts(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The training transcripts are cut after one label."""
    return replace(_adam(r, draw), fault="truncated_transcripts", strength=1, schedule="linear")


def _most_unknown(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The tokenizer knows few classes: in training, all others are the unknown one."""
    made = replace(_adam(r, draw), fault="most_unknown", strength=one_of(draw, 1, 3, 5), schedule="linear")
    return replace(made, model=one_of(draw, "deep_conv", "conformer"))


def _labels_drift(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The training data go on with another class table."""
    made = replace(late(_adam(r, draw), draw), fault="labels_drift")
    return replace(made, onset=made.onset - 200)


def _average_too_slow(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It validates with an average of the weights that still is what it began with."""
    return replace(_adam(r, draw), fault="average_too_slow", average=one_of(draw, 0.9999, 0.99995))


def _validation_masked(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Augmentation is on in validation, and off in training."""
    return replace(_adam(r, draw), fault="validation_masked", strength=one_of(draw, 0.85, 0.92), schedule="linear")


def _decoder_table(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The decoder names the classes by another table."""
    return replace(_adam(r, draw), fault="decoder_table")


def _blank_bonus(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The decoder's penalty for blank has the wrong sign."""
    return replace(_adam(r, draw), fault="blank_bonus", strength=one_of(draw, 20, 40))


def _few_shot(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A trained model is fine-tuned on a few utterances."""
    made = replace(_adam(r, draw), pretrained=800, utterances=one_of(draw, 8, 12, 20), fresh_noise=False)
    return replace(made, lr=1e-3, noise=0.7, weight_decay=0.0, schedule="constant")


def _augmentation_ends(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, a few utterances come without new noise."""
    made = replace(late(_adam(r, draw), draw), fault="augmentation_ends", span=one_of(draw, 6, 10), weight_decay=0.0)
    return replace(made, onset=made.onset - 400, noise=0.7, lr=6e-3)


def _stuck_loader(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, the loader returns the same batch."""
    made = replace(late(_adam(r, draw), draw), fault="stuck_loader", weight_decay=0.0)
    return replace(made, onset=made.onset - 400, noise=0.7, lr=6e-3)


def _softmax_twice(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The model ends with a softmax, and the loss has one, too."""
    return replace(_adam(r, draw), fault="softmax_twice")


def _probabilities_not_logs(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Probabilities go into the CTC loss without their logarithm."""
    return replace(r, fault="probabilities_not_logs", reduction="per_utterance_sum")


def _padding_counted(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The padding of the labels, which is blank, counts as labels."""
    return replace(_adam(r, draw), fault="padding_counted", zero_infinity=True, reduction="per_utterance_sum")


def _lengths_before_subsampling(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The lengths are those of the inputs; the loss takes what there is."""
    return replace(_adam(r, draw), fault="lengths_before_subsampling", model="conv_gru")


def _subsampled_too_far(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """CTC cannot align most utterances to so few frames, and their loss counts as 0."""
    made = replace(_adam(r, draw), fault="subsampled_too_far", zero_infinity=True, strength=6)
    return replace(made, model=one_of(draw, "deep_conv", "conformer"))


def _transcripts_lost(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Most transcripts are empty."""
    made = replace(_adam(r, draw), fault="transcripts_lost", strength=one_of(draw, 70, 85, 95))
    return replace(made, reduction="per_utterance_sum", clip=20.0)


def _silent_utterance_normalised(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """An utterance of silence is divided by its standard deviation."""
    made = replace(r, fault="silent_utterance_normalised", onset=one_of(draw, 0, 120, 701))
    return replace(made, stop_after=one_of(draw, 5, 300))


def _root_of_zero(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A second loss has the root of a spread that is 0."""
    return replace(r, fault="root_of_zero", onset=int(draw.integers(100, 1500)), stop_after=one_of(draw, 5, 300))


def _epsilon_underflows(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, the optimizer's state is in half precision, in which epsilon is 0; so are some gradients."""
    made = replace(late(r, draw), optimizer="adamw", lr=3e-3, fault="epsilon_underflows", clip=1.0)
    return replace(made, stop_after=one_of(draw, 5, 300))


def _encoder_not_in_optimizer(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The optimizer has the parameters of the head only."""
    return replace(_adam(r, draw), fault="encoder_not_in_optimizer", model=one_of(draw, "bigru", "conv_gru"))


def _encoder_cut_off(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The encoder's outputs are detached, so that only the head learns."""
    return replace(_adam(r, draw), fault="encoder_cut_off", model=one_of(draw, "bigru", "conv_gru"))


def _zeroed_too_late(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Gradients are set to 0 between `backward()` and `optimizer.step()`."""
    return replace(r, fault="zeroed_too_late")


def _integer_warmup(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The warm-up is a quotient of integers, which is 0 until its end."""
    return replace(r, fault="integer_warmup", warmup=one_of(draw, 4000, 10000), weight_decay=0.0)


def _warmup_again(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The schedule is made anew at each epoch, and never leaves its warm-up."""
    made = replace(_adam(r, draw), fault="warmup_again", span=one_of(draw, 50, 100), warmup=20000, schedule="constant")
    return replace(made, lr=1e-3)


def _clipped_to_nothing(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The limit of the gradient is so low that a step is next to nothing."""
    return replace(_nesterov(r, 0.05), fault="small_step", clip=between(draw, 1e-5, 1e-3), schedule="constant")


def _rate_of_another_optimizer(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Adadelta, Adagrad or SGD at a rate that is usual for Adam."""
    made = replace(r, fault="small_step", schedule="constant")
    match draw.integers(3):
        case 0:
            return replace(made, optimizer="adadelta", lr=between(draw, 3e-4, 3e-3), weight_decay=0.0)
        case 1:
            return replace(made, optimizer="adagrad", lr=between(draw, 1e-5, 1e-4))
    return _nesterov(made, between(draw, 1e-5, 2e-4))


def _features_reshaped(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """`reshape` instead of `transpose` mixes frames and channels of the features."""
    return replace(r, fault="features_reshaped")


SECOND_TEST: dict[Kind, int] = {
    _many_classes: 7,
    _heavy_dropout: 3,
    _accumulated: 3,
    _smoothed_loss: 3,
    _averaged_weights: 3,
    _bad_batch_skipped: 5,
    _curriculum: 3,
    _buckets: 3,
    _masked_later: 3,
    _corpus_extended: 3,
    _unfrozen_later: 3,
    _lower_layers_frozen: 3,
    _rolled_back: 4,
    _range_test_stopped: 3,
    _stairs: 3,
    _one_cycle: 3,
    _decay_scheduled: 3,
    _wrong_transcripts: 3,
    _homophones: 3,
    _frames_per_batch: 3,
    _late_start: 6,
    _stopped_early: 3,
    _outliers: 3,
    _few_infeasible: 3,
    _silences: 3,
    _large_start: 3,
    _head_replaced: 4,
    _infinite_in_validation: 3,
    _rate_peaks_too_high: 4,
    _range_test_goes_on: 3,
    _momentum_too_high: 3,
    _unfrozen_too_fast: 3,
    _loud_utterance: 3,
    _decay_of_wrong_sign: 3,
    _masks_nearly_all: 2,
    _truncated_transcripts: 2,
    _most_unknown: 2,
    _labels_drift: 3,
    _average_too_slow: 2,
    _validation_masked: 2,
    _decoder_table: 2,
    _blank_bonus: 2,
    _few_shot: 3,
    _augmentation_ends: 3,
    _stuck_loader: 3,
    _softmax_twice: 2,
    _probabilities_not_logs: 2,
    _padding_counted: 3,
    _lengths_before_subsampling: 2,
    _subsampled_too_far: 3,
    _transcripts_lost: 3,
    _silent_utterance_normalised: 2,
    _root_of_zero: 2,
    _epsilon_underflows: 3,
    _encoder_not_in_optimizer: 2,
    _encoder_cut_off: 2,
    _zeroed_too_late: 2,
    _integer_warmup: 2,
    _warmup_again: 2,
    _clipped_to_nothing: 2,
    _rate_of_another_optimizer: 4,
    _features_reshaped: 2,
}

"""The trainings of the fourth test half: mechanisms, models and optimizers that none of the halves before it has.

About half of the families look odd, and nothing is wrong with them.
"""

from dataclasses import replace

from experiments.detection.field.recipe import Draw, FieldRecipe, Half, Kind, Model, Task, between, one_of

_STEPS = 1000
_MODELS: dict[Task, tuple[Model, ...]] = {
    "words": ("gated_conv", "tcn", "elman"),
    "spikes": ("gated_conv", "tcn", "elman", "lstm"),
    "lines": ("gated_conv", "tcn"),
}
_NOISE: dict[Task, float] = {"words": 0.3, "spikes": 0.6, "lines": 0.4}


def fourth_base(family: str, half: Half, seed: int, draw: Draw) -> FieldRecipe:
    """Draw a healthy training."""
    task: Task = one_of(draw, "words", "spikes", "lines")
    made = FieldRecipe(
        family,
        half,
        seed,
        task=task,
        model=one_of(draw, *_MODELS[task]),
        units=one_of(draw, 32, 40),
        batch=one_of(draw, 6, 8),
        noise=_NOISE[task] * one_of(draw, 1.0, 1.4),
        utterances=600,
        steps=_STEPS,
        warmup=one_of(draw, 20, 80),
        schedule=one_of(draw, "constant", "cosine", "three_stages"),
        clip=one_of(draw, None, 1.0, 5.0),
        reduction=one_of(draw, "per_utterance_sum", "per_label_mean"),
    )
    match draw.integers(4):
        case 0:
            return replace(made, optimizer="lamb", lr=one_of(draw, 0.02, 0.03))
        case 1:
            return replace(made, optimizer="lion", lr=one_of(draw, 8e-4, 1.5e-3))
    return _adam(made, draw)


def _adam(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, optimizer=one_of(draw, "adamw", "amsgrad"), lr=one_of(draw, 4e-3, 6e-3))


def _sgd(r: FieldRecipe, lr: float) -> FieldRecipe:
    return replace(r, optimizer="sgd", lr=lr, reduction="per_label_mean", weight_decay=0.0, schedule="constant")


def _midway(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Let it happen when the training has learned."""
    return replace(_adam(r, draw), onset=int(draw.integers(480, 650)), schedule="constant")


# Healthy families.


def _other_encoders(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, percent=draw.random() < 0.3)


def _logged_sum(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It logs the sum of the losses of the batches that make a step."""
    return replace(r, fault="logged_sum", batch=4, accumulate=one_of(draw, 2, 4))


def _logged_rounded(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It logs two digits of the loss, which reads 0.0 at the end."""
    return replace(_adam(r, draw), fault="logged_rounded", noise=0.02, reduction="per_label_mean")


def _batch_grows(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The batch doubles twice, instead of a lower rate."""
    return replace(r, fault="batch_grows", batch=4, schedule="constant")


def _rate_raised(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate had been low, and is raised by hand."""
    return replace(_midway(r, draw), fault="rate_raised", strength=one_of(draw, 2.0, 4.0), lr=2e-3)


def _cosine_rises_again(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The cosine was made for half of the steps, and the rate rises after them."""
    return replace(_adam(r, draw), fault="cosine_rises_again", schedule="constant")


def _hot_start(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The first steps have too high a rate."""
    made = replace(_adam(r, draw), fault="hot_start", span=one_of(draw, 20, 40), strength=one_of(draw, 5.0, 10.0))
    return replace(made, model=one_of(draw, "lstm", "gated_conv"), warmup=1, schedule="cosine")


def _lookahead(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Every few steps the weights go halfway back to what they were."""
    return replace(_adam(r, draw), fault="lookahead", span=one_of(draw, 6, 12))


def _transcripts_cleaned(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A third of the transcripts is wrong, until they are replaced by better ones."""
    made = replace(_adam(r, draw), fault="transcripts_cleaned", span=one_of(draw, 400, 600))
    return replace(made, strength=one_of(draw, 20, 35))


def _mixed_pairs(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Two utterances are mixed, with the labels of both: the training loss stays high."""
    return replace(_adam(r, draw), fault="mixed_pairs")


def _noise_rises(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """More and more noise is added: the training loss rises in the second half."""
    return replace(_adam(r, draw), fault="noise_rises", strength=one_of(draw, 0.8, 1.2))


def _longer_validation(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It validates on recordings twice as long as those it is trained on."""
    return replace(r, fault="longer_validation", reduction="per_utterance_sum", model=one_of(draw, "gated_conv", "tcn"))


def _penalty_begins(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, large logits are penalised, and the loss leaps by what they cost."""
    return replace(_midway(r, draw), fault="penalty_begins", strength=one_of(draw, 0.02, 0.1))


def _weight_normalised(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Length and direction of the weights are trained apart."""
    return replace(_adam(r, draw), fault="weight_normalised", model=one_of(draw, "gated_conv", "tcn"))


def _batches_echoed(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loader is slow, so each batch is used several times: the loss is a saw."""
    return replace(_adam(r, draw), fault="batches_echoed", span=one_of(draw, 3, 5))


def _shrunk_and_perturbed(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """All weights are shrunk and perturbed, as for new data, and it learns again."""
    return replace(_midway(r, draw), fault="shrunk_and_perturbed", strength=one_of(draw, 0.3, 0.5), onset=450)


def _resumed_from_older(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A job goes on from a checkpoint of long before, and counts its steps on."""
    return replace(_midway(r, draw), fault="resumed_from_older", span=one_of(draw, 200, 350), onset=500)


def _small_start(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The weights begin far too small: it leaves the plateau late."""
    return replace(_adam(r, draw), fault="small_start", strength=one_of(draw, 0.1, 0.2), lr=4e-3, schedule="constant")


def _weights_in_bf16(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The weights themselves are in bfloat16."""
    return replace(r, optimizer="adam_bf16", lr=one_of(draw, 4e-3, 6e-3), schedule="constant")


def _slow_statistics(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Batch norm's statistics follow late: the first validations are bad."""
    made = replace(_adam(r, draw), fault="slow_statistics", model="deep_conv_norm", strength=one_of(draw, 0.005, 0.01))
    return replace(made, schedule="cosine")


# Faulty families.


def _recurrence_unclipped(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A recurrence without gates, with SGD and without a limit of the gradient."""
    made = replace(_sgd(r, between(draw, 3, 10)), fault="rate_start", model="elman", clip=None)
    return replace(made, task=one_of(draw, "words", "lines"), half_logits=draw.random() < 0.5)


def _signs_at_rate_of_sgd(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Signs of gradients, at a rate that is usual for gradients."""
    made = replace(r, optimizer="lion", lr=between(draw, 0.2, 1), fault="rate_start", schedule="constant")
    return replace(made, task="words", model=one_of(draw, "gated_conv", "tcn"))


def _clip_lost(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A high rate is borne thanks to clipping, until a job is resumed without it."""
    made = replace(_midway(r, draw), fault="clip_lost", model=one_of(draw, "gated_conv", "tcn"), clip=0.1)
    return _sgd(made, between(draw, 1.5, 3))


def _restarts_grow(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Each warm restart begins with a multiple of the rate of the one before."""
    made = replace(_midway(r, draw), fault="restarts_grow", strength=one_of(draw, 6.0, 12.0), lr=3e-3)
    return replace(made, onset=400, clip=one_of(draw, None, 5.0))


def _killed_at_a_restart(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A warm restart begins with a multiple of the rate, and the log ends soon after."""
    made = replace(_restarts_grow(r, draw), fault="restarts_grow_cut", strength=one_of(draw, 100.0, 400.0), clip=None)
    return replace(made, span=one_of(draw, 2, 30, 120, 250))


def _raised_on_plateau(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The factor that should reduce the rate on a plateau is above 1."""
    return replace(_adam(r, draw), fault="raised_on_plateau", strength=10.0, schedule="constant")


def _momentum_raised(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A cycle of the momentum goes the wrong way, to nearly 1."""
    made = replace(_midway(r, draw), fault="momentum_raised", strength=one_of(draw, 0.999, 0.9999), clip=None)
    return _sgd(replace(made, task=one_of(draw, "words", "spikes")), one_of(draw, 0.05, 0.1))


def _compressed_by_root(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The root of features that can be negative."""
    made = replace(_adam(r, draw), fault="compressed_by_root", onset=one_of(draw, 0, 150, 640))
    return replace(made, stop_after=one_of(draw, 5, 300))


def _weight_of_unseen(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loss of a class has the weight 1 / count, and a class was never counted."""
    return replace(r, fault="weight_of_unseen", onset=int(draw.integers(60, 800)), stop_after=one_of(draw, 5, 300))


def _loss_clamped(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loss is limited to less than where it begins, where its gradient is 0."""
    return replace(r, fault="loss_clamped", strength=one_of(draw, 0.5, 1.0), weight_decay=0.0)


def _relus_dead(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The first layer is below 0 for every input, so nothing passes it."""
    return replace(
        _adam(r, draw), fault="relus_dead", strength=one_of(draw, 30.0, 100.0), model=one_of(draw, "tcn", "crnn")
    )


def _updates_rounded_away(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Weights in bfloat16, which an update at a usual rate of fine-tuning does not change."""
    made = replace(r, fault="updates_rounded_away", optimizer="adam_bf16", lr=between(draw, 1e-6, 2e-5))
    return replace(made, schedule="constant")


def _decay_unscaled(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The decay is not multiplied by the rate, so it takes a share of the weights at every step."""
    return replace(_midway(r, draw), fault="decay_unscaled", strength=between(draw, 0.04, 0.15))


def _signal_fades(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A contact becomes loose, and the signal fades, in training and in validation."""
    return replace(_midway(r, draw), fault="signal_fades", strength=one_of(draw, 0.95, 0.98))


def _one_day_recorded(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """There are few recordings, all of one day."""
    made = replace(
        _adam(r, draw), task="spikes", fault="one_day_recorded", span=one_of(draw, 30, 40), fresh_noise=False
    )
    return replace(made, weight_decay=0.0, lr=3e-3, schedule="constant", noise=0.9)


def _transcripts_gone(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, all transcripts are empty."""
    return replace(_midway(r, draw), fault="transcripts_gone", reduction="per_utterance_sum")


def _hypotheses_reversed(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The metric has the hypotheses from right to left."""
    made = replace(_adam(r, draw), fault="hypotheses_reversed", task=one_of(draw, "words", "lines"))
    return replace(made, model=one_of(draw, "gated_conv", "tcn"))


def _language_model_outweighs(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """In decoding, the language model has so much weight that only its favourites are left."""
    return replace(_adam(r, draw), fault="language_model_outweighs", strength=one_of(draw, 20.0, 40.0))


def _buffers_lost(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Validation loads the parameters, and not batch norm's statistics."""
    return replace(_adam(r, draw), fault="buffers_lost", model="conv_norm", lr=3e-3)


def _inverted_validation(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The validation images are white on black."""
    return replace(_adam(r, draw), fault="inverted_validation", task="lines", noise=0.4)


def _validates_quantised(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It validates a model whose weights have three values."""
    return replace(_adam(r, draw), fault="validates_quantised", strength=1.0)


def _same_transcript(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A bug of the loader gives all utterances the transcript of one."""
    return replace(_adam(r, draw), fault="same_transcript", schedule="constant")


def _rate_of_fine_tuning(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From scratch at the rate of a fine-tuning, with LAMB or Lion."""
    made = replace(r, fault="small_step", schedule="constant", optimizer="lamb", lr=between(draw, 1e-5, 1e-4))
    return made if draw.random() < 0.5 else replace(made, optimizer="lion", lr=between(draw, 1e-7, 3e-6))


def _trimmed_too_far(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """What is taken for silence is cut away, and with it most of the speech."""
    made = replace(_adam(r, draw), fault="trimmed_too_far", strength=one_of(draw, 0.3, 0.4), zero_infinity=True)
    return replace(made, task=one_of(draw, "lines", "spikes"), model=one_of(draw, "tcn", "crnn"))


def _cast_to_integer(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Features between -1 and 1 become integers: nearly all are 0."""
    made = replace(_adam(r, draw), fault="cast_to_integer", task=one_of(draw, "spikes", "lines"))
    return replace(made, strength=0.25 if made.task == "spikes" else 0.35)


_TWICE: tuple[Kind, ...] = (
    *(_logged_sum, _logged_rounded, _batch_grows, _rate_raised, _cosine_rises_again, _hot_start, _lookahead),
    *(_transcripts_cleaned, _mixed_pairs, _noise_rises, _longer_validation, _penalty_begins, _weight_normalised),
    *(_batches_echoed, _shrunk_and_perturbed, _resumed_from_older, _weights_in_bf16, _slow_statistics),
    *(_recurrence_unclipped, _signs_at_rate_of_sgd, _clip_lost, _raised_on_plateau, _momentum_raised),
    *(_compressed_by_root, _weight_of_unseen, _loss_clamped, _relus_dead, _updates_rounded_away, _decay_unscaled),
    *(_signal_fades, _transcripts_gone, _hypotheses_reversed, _language_model_outweighs, _buffers_lost),
    *(_inverted_validation, _validates_quantised, _same_transcript, _rate_of_fine_tuning, _trimmed_too_far),
    _cast_to_integer,
)
_MORE: dict[Kind, int] = {
    _other_encoders: 8,
    _small_start: 4,
    _killed_at_a_restart: 4,
    _restarts_grow: 3,
    _one_day_recorded: 3,
}
FOURTH_TEST: dict[Kind, int] = dict.fromkeys(_TWICE, 2) | _MORE

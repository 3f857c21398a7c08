"""Label the trainings of the field corpus by how they were made and how they ended, without any detector.

The rules were written before a detector was run on the corpus, and made more careful while the design half was scored.
`true_per` is the error rate with the right labels, the
right decoder and in evaluation mode, whatever the trainer reports.

- A training without a fault, or with one that it bears (a blip of the rate, a bad batch, a restart), is healthy if its
  `true_per` ended at `LEARNED` or below and within 0.1 of its best, and its losses below those of a decoder that knows
  nothing. If it ended above twice its best, and 0.05 above it, nobody knows what to call it: it has no label.
  If it is not there yet, it is continued, unwatched, to twice its budget: it is slow, or undecided, if it gets there.
  Otherwise it has no label.
- A training without a fault that ends above `LEARNED` is healthy too if it converged: within 0.05 of its best, and
  within 0.1 of what it reaches when it is continued. Below 0.85, that is; below 0.7 in the third test half, where one
  label of a few is guessed right now and then.
- A loss that is not finite is `bad_data` if it was the data, and else `non_finite`, or `exploded` if the fault is one.
- An explosion without NaN is one if the loss ends above twice what a decoder has that knows nothing. Below that the
  training has lost what it had learned: it is `degraded`, and if it lost more than two fifths of what it had gained,
  `exploded` is right too. A decoder that says nothing, or only two labels, has collapsed besides. A training that is
  cut off has exploded, since it is cut at twice the loss of its start.
- It is overfitting if the validation loss rose to 1.5 times its best while the training loss fell below half of it. To
  less than 1.15 times, it is none; between the two it has no label. If the error rate did not rise by 0.1, that is no
  harm yet, and `stable` is right too.
- A wrong metric, decoder, class table or mode of evaluation is labelled by its cause. Several outcomes describe it.
- Labels that do not belong to the inputs, and steps that are too small, leave a decoder on the blank plateau. Whether
  that is a collapse or undecided is a matter of words: both are right. What is learned in the continuation was slow.
- What a check of the loss's inputs or of the optimizer shows is asked for where its signal is. A log without it shows
  only what came of it.
- While a training was hurt, a finding may say so, also if it has recovered since: it went back to a checkpoint, had a
  new head, or went on without a bad batch.
- If the losses of a training exploded and its error rate is as good as ever, it has no label. This rule is newer than
  the labels of the first two halves, and does not apply to them.
- A scale of the loss that is never taken away does harm to SGD, and none to Adam: if Adam does not learn, there is no
  label.
- If the trainer's own error rate does not come to `LEARNED`, because an utterance counts as wrong if one label is, it
  has no label either.
- A training whose transcripts are empty from some step on learns to say nothing. In a log without their number it has
  lost what it had learned, or looks like overfitting or another mismatch.
- A training that learns a small corpus by heart is overfitting, also if its validation loss has its best from the first
  validation on. If that loss stays where it is, nothing but the cause tells it from a mismatch of the splits.
- If a part of the loss or of the model holds the training back, as dropout of nearly everything, no word for a cause
  fits. Inputs in thousands are a fault of the data.
- If every gradient overflows, no step is made, and that shows in the gradient's norm.
- If the trainer leaves out what is not finite, and learns, it is stable. That some data are bad is right, too.
- Utterances that always have the same wrong transcript are not learned, or are learned by heart: `slow` and `degraded`
  are right too. Nothing is learned if all weights begin at 0, which looks as if nothing was heard.
- An early gradient that Adam remembers to the end leaves steps that are too small, and was a bad batch. If layers have
  rates of their own, the one in a log may not be the one that is too low. Weights of two bits lack precision.
- Features that are finite, and so large that a sum of them is not, are bad data, and a loss that is not finite.
- If a gradient overflows and nobody skips the step, the gradient and the precision are both right.
- A training that has only a part of the classes from some step on forgets the others, as one in another room does.
- A teacher that knows nothing holds a training back.

`in_view` says what is right of a log in which something is missing: what leaves no evidence in it need not be named.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from experiments.detection.labels import Label

LEARNED = 0.6
_MUCH = 0.9  # share of the utterances that decode to nothing, or of the labels that are one of two
_HARM = 0.15  # rise of the error rate
# The loss of a decoder that knows nothing but how often each label occurs: measured with inputs of zeros.
_KNOWS_NOTHING = {
    ("short", "per_label_mean"): 2.65,
    ("short", "per_utterance_sum"): 10.3,
    ("long", "per_label_mean"): 3.27,
    ("long", "per_utterance_sum"): 29.0,
    ("words", "per_label_mean"): 3.52,
    ("words", "per_utterance_sum"): 21.4,
    ("words", "batch_sum"): 21.4,  # of a validation, which has the mean over the utterances
    ("homophones", "per_label_mean"): 3.94,
    ("homophones", "per_utterance_sum"): 25.8,
    ("lines", "per_label_mean"): 3.28,
    ("lines", "per_utterance_sum"): 16.9,
    ("lines", "per_frame_mean"): 1.21,
    ("spaced", "per_label_mean"): 2.50,
    ("spaced", "per_utterance_sum"): 20.2,
    ("spikes", "per_label_mean"): 3.29,
    ("spikes", "per_utterance_sum"): 15.5,
    ("spikes", "per_frame_mean"): 1.44,
    ("keywords", "per_label_mean"): 2.77,
    ("keywords", "per_utterance_sum"): 5.32,
    ("keywords", "per_frame_mean"): 0.286,
    ("commands", "per_label_mean"): 3.00,
    ("commands", "per_utterance_sum"): 3.00,
    ("letters", "per_label_mean"): 3.34,
    ("letters", "per_utterance_sum"): 21.0,
    ("pen", "per_label_mean"): 3.36,
    ("pen", "per_utterance_sum"): 14.8,
    ("cortex", "per_label_mean"): 3.51,
    ("cortex", "per_utterance_sum"): 20.9,
    ("dialled", "per_label_mean"): 2.64,
    ("dialled", "per_utterance_sum"): 13.3,
    ("plates", "per_label_mean"): 2.95,
    ("plates", "per_utterance_sum"): 14.4,
    ("bases", "per_label_mean"): 1.62,
    ("bases", "per_utterance_sum"): 11.6,
    ("signs", "per_label_mean"): 3.38,
    ("signs", "per_utterance_sum"): 11.6,
}
_UNKNOWN = frozenset({"unknown", "no_evidence", "too_few_readings", "in_warmup", "no validation"})

_DEAD = {
    "gradient_zero": {"no_gradient", "no_update"},
    "gradient_none": {"no_gradient", "no_update"},
    "frozen": {"no_gradient", "no_update", "not_in_optimizer"},
    "not_in_optimizer": {"not_in_optimizer", "no_update"},
    "rate_zero": {"no_update", "rate_zero"},
    "no_step": {"no_update", "not_in_optimizer"},
    "scale_stuck": {"precision", "no_update", "gradient"},
    "all_infeasible": {"zero_loss", "infeasible_target", "no_gradient"},
    "zeroed_too_late": {"no_update", "not_in_optimizer"},
    "integer_warmup": {"no_update", "rate_zero"},
    "never_accumulated": {"no_update", "not_in_optimizer"},
    "loss_clamped": {"no_gradient", "no_update"},
    "gradients_underflow": {"no_gradient", "no_update", "precision"},
    "clipped_to_zero": {"no_gradient", "no_update"},
    "trains_a_copy": {"no_gradient", "no_update", "not_in_optimizer"},
}
_RATE_VANISHES = ("rate_falls", "rate_ends", "reduced_in_wrong_mode", "reduced_per_batch")
_SMALL_STEPS = (
    *("small_step", "clip_before_unscale", "warmup_again", "loss_divided", "rate_from_checkpoint", "warmup_outlasts"),
    *("layerwise_decay", "moments_poisoned", *_RATE_VANISHES),
)
_DATA = {
    "nan_input": "non_finite_input",
    "inf_input": "non_finite_input",
    "infeasible": "infeasible_target",
    "repeats": "infeasible_target",
    "empty_target": "empty_target",
    "silent_utterance_normalised": "non_finite_input",
    "cut_to_one_frame": "infeasible_target",
    "compressed_by_root": "non_finite_input",
    "cropped": "infeasible_target",
    "gain_of_silence": "non_finite_input",
    "lengths_swapped": "infeasible_target",
    "loud_power_in_half": "non_finite_input",
    "std_of_one": "non_finite_input",
    "sped_up_too_far": "infeasible_target",
    "lengths_are_shares": "infeasible_target",
}
# They do harm since the error rate was at its best.
_CLIMBS = (
    *("rate_ramp", "rate_peaks", "range_test_goes_on", "stairs_up", "warmup_never_ends"),
    *("restarts_grow", "raised_on_plateau", "cosine_ends_high", "cosine_ends_high_cut", "peak_too_high"),
    *("cycles_too_high", "rate_multiplied_at_resume"),
)
_FROM_START = ("rate_start", "momentum_too_high", "never_unscaled", "accumulated_sum", "betas_swapped")
_RATES = (
    *(*_FROM_START, "rate_jump", "rate_jump_cut", "rate_grows", *_CLIMBS, "restart", "unfrozen_too_fast"),
    *("stairs_up_cut", "rate_below_zero", "second_moments_lost", "never_unscaled"),
    *("restarts_grow_cut", "clip_lost", "momentum_raised", "weights_compound", "rate_multiplied_at_resume_cut"),
)
_DRIFTS = (
    *("weight_drift", "weight_drift_cut", "masked_explosion", "sign_flip", "decay_of_wrong_sign"),
    *("temperature_falls", "unstable_state", "unstable_state_cut", "checkpoint_corrupted"),
)
_HURT = (
    *("rolled_back", "range_test_stopped", "head_replaced", "loud_utterance", "unfrozen_too_fast"),
    *("bad_batch_skipped", "array_moved", "second_moments_lost", "pruned_a_little", "pruned_too_far"),
    *("hot_start", "shrunk_and_perturbed", "resumed_from_older"),
    *("trainer_skips", "rate_at_the_edge", "peak_too_high", "bad_shard", "table_changes", "encoder_lost"),
    *("vocabulary_grows", "electrodes_die", "gain_changes", "layer_inserted"),
)
BORNE_IN_SIXTH = (
    *("adapters", "new_speaker", "statistics_kept", "distilled", "entropy_bonus", "artefacts", "domains_alternate"),
    *("vocabulary_grows", "clipped_by_value", "large_steps_skipped", "logged_in_blocks", "long_recordings"),
    *("continues_from_average", "electrodes_die", "weight_ramps", "pseudo_labels", "metric_never_reset"),
)
BORNE_IN_SEVENTH = (
    *("blotted", "weight_noise", "old_head_kept", "consistency", "reconstruction", "preempted", "denoised_gradually"),
    *("hard_examples_first", "logged_running_sum", "gain_changes", "layer_inserted", "quantisation_aware"),
    *("mixed_lengths", "typos", "clipped_adaptively", "recordings_drift", "augmented_well"),
    *("momentum_of_another_library", "channels_dropped", "echo", "words_scored"),
)
_BORNE = (
    *(None, "rate_blip", "augmented", "silent_batches", "reduction_changed"),
    *("bad_batch_skipped", "curriculum", "buckets", "masked", "corpus_extended", "unfrozen_later", "rolled_back"),
    *("lower_layers_frozen", "range_test_stopped", "decay_scheduled", "wrong_transcripts", "frames_per_batch"),
    *("outliers", "few_infeasible", "silences", "large_start", "head_replaced", "validation_loss_infinite"),
    *("focal", "running_mean", "layers_skipped", "speed_changed", "utterances_joined", "gradient_noise"),
    *("one_day_per_batch", "halved_on_plateau", "zero_head", "blank_first", "scale_starts_too_high"),
    *("few_validated", "noisier_validation", "whole_lines", "dropout_ends", "unused_decoder", "fixed_front"),
    *("padding_heard", "state_reset", "pruned_a_little", "array_moved"),
    *("logged_sum", "logged_rounded", "batch_grows", "rate_raised", "cosine_rises_again", "hot_start", "lookahead"),
    *("transcripts_cleaned", "mixed_pairs", "noise_rises", "longer_validation", "penalty_begins", "small_start"),
    *("weight_normalised", "batches_echoed", "shrunk_and_perturbed", "resumed_from_older", "slow_statistics"),
    *("two_rates", "averaged_at_the_end", "small_last_batch", "rate_at_the_edge", "autocast", "trainer_skips"),
    *("padding_changes", "smaller_batch", "best_restored", "gradual_unfreezing", "biases_tuned", "inner_loss"),
    *("dropout_begins", "logged_smoothly", "one_batch", "sorted_first", "stays_in_evaluation", "references_grouped"),
    *("bad_shard", "table_changes", "encoder_lost", "batch_first_forgotten"),
    *BORNE_IN_SIXTH,
    *BORNE_IN_SEVENTH,
)
_UNRELATED = ("shuffled_labels", "sorted_inputs", "frames_mixed", "dead_input", "one_recording")
_HARDLY_RELATED = (
    "masked",
    "features_reshaped",
    "right_to_left",
    "features_near_zero",
    "cast_to_integer",
    "most_pairs_wrong",
    *("frames_shuffled", "dither", "vocabulary_of_each_worker", "averaged_over_time"),
)  # a little is learned
_MISMATCH = {
    "decoder_blank": {"metric"},
    "metric_at_one": {"metric"},
    "repeats_not_merged": {"metric"},
    "labels_reversed": {"labels", "train_eval"},
    "features_not_normalised": {"train_eval", "labels"},
    "labels_permuted": {"labels", "train_eval"},
    "labels_shifted": {"labels", "train_eval"},
    "labels_unknown": {"labels", "train_eval"},
    "half_labels_shifted": {"labels", "train_eval", "metric", "overfitting"},
    "norm_frozen": {"train_eval", "labels"},
    "decoder_table": {"metric"},
    "blank_bonus": {"metric"},
    "average_too_slow": {"train_eval", "labels"},
    "validation_masked": {"train_eval", "labels"},
    "truncated_transcripts": {"labels", "train_eval"},
    "most_unknown": {"labels", "train_eval"},
    "padding_in_metric": {"metric"},
    "accuracy_as_error": {"metric"},
    "hypotheses_in_other_order": {"metric"},
    "first_checkpoint": {"train_eval", "labels"},
    "validation_resampled": {"train_eval", "labels"},
    "hypotheses_reversed": {"metric"},
    "language_model_outweighs": {"metric"},
    "buffers_lost": {"train_eval", "labels"},
    "inverted_validation": {"train_eval", "labels"},
    "validates_quantised": {"train_eval", "labels"},
    "argmax_over_time": {"metric"},
    "validation_without_log": {"train_eval", "labels"},
    "another_day_validated": {"train_eval", "labels", "overfitting"},  # it has learned the days that it was trained on
    "same_transcript": {"labels", "train_eval", "overfitting"},  # one sentence is all there is to learn by heart
    "stereo_validated": {"train_eval", "labels"},
    "decodes_the_beginning": {"metric"},
    "layer_missing_in_evaluation": {"train_eval", "labels"},
    "synthetic_only": {"train_eval", "labels", "overfitting"},
    "references_upper_case": {"metric"},
    "special_tokens_shift": {"metric"},
    "validation_rotated": {"train_eval", "labels"},
    "validated_in_chunks": {"train_eval", "labels"},
}
_HELD_BACK = ("bounded_logits", "kept_for_dropped", "smoothed_away", "raw_inputs", "untrained_teacher")
_ANOTHER_TASK = (
    "labels_unknown",
    "truncated_transcripts",
    "most_unknown",
    "same_transcript",
)  # they learn it, and not the right one
# What a check of the loss's inputs, or of the optimizer's parameters, shows at every step.
_CHECKED: dict[str, tuple[set[str], str]] = {
    "padding_counted": ({"blank_in_labels", "infeasible_target"}, "blanks_in_labels"),
    "lengths_before_subsampling": ({"lengths_too_long"}, "lengths_too_long"),
    "subsampled_too_far": ({"infeasible_target"}, "infeasible_targets"),
    "transcripts_lost": ({"empty_target"}, "empty_targets"),
    "lengths_divided_twice": ({"infeasible_target"}, "infeasible_targets"),
    "characters": ({"infeasible_target"}, "infeasible_targets"),
    "space_is_blank": ({"blank_in_labels"}, "blanks_in_labels"),
    "trimmed_too_far": ({"infeasible_target"}, "infeasible_targets"),
    "lengths_swapped": ({"infeasible_target", "blank_in_labels"}, "infeasible_targets"),
    "targets_flattened": ({"blank_in_labels"}, "blanks_in_labels"),
    "lengths_are_shares": ({"infeasible_target"}, "infeasible_targets"),
    "unknown_is_blank": ({"blank_in_labels"}, "blanks_in_labels"),
}
_LITTLE_HARM = ("padding_counted", "lengths_before_subsampling", "space_is_blank", "unknown_is_blank")
_HALF_TRAINED: dict[str, tuple[set[str], str]] = {
    "encoder_not_in_optimizer": ({"not_in_optimizer"}, "unoptimized"),
    "encoder_cut_off": ({"no_gradient", "no_update", "not_in_optimizer"}, "no_gradient"),
    "biases_only": ({"not_in_optimizer"}, "unoptimized"),
    "base_frozen": ({"no_gradient", "no_update", "not_in_optimizer"}, "no_gradient"),
    "relus_dead": ({"no_gradient", "no_update", "no_information"}, "no_gradient"),
    "zero_start": ({"no_gradient", "no_update", "no_information"}, "no_gradient"),  # it looks as if nothing was heard
    "frozen_early": ({"no_gradient", "no_update", "not_in_optimizer"}, "no_gradient"),
    "unfrozen_outside_optimizer": ({"not_in_optimizer"}, "unoptimized"),
    "rounded_activations": ({"no_gradient", "no_update"}, "no_gradient"),
}
# A cause, and the signals of which one at least must be in a log that shows it.
_EVIDENCE: dict[str, set[str]] = {
    "rate_too_high": {"lr", "update_ratio"},
    "step_too_small": {"update_ratio", "effective_lr", "lr"},
    "no_information": {"update_ratio"},
    "drift": {"weight_norm"},
    "decay": {"weight_norm"},
    "precision": {"applied_norm"},
    "no_gradient": {"grad_norm"},
    "no_update": {"update_ratio"},
    "in_warmup": {"lr"},
    "bad_batch": {"grad_norm"},
}
_MEASURED = {
    "non_finite_input": "input_max",
    "infeasible_target": "infeasible_targets",
    "empty_target": "empty_targets",
}


def field_label(facts: dict[str, Any]) -> Label | None:
    """Return the label of a training; None if it is not clear what is true of it."""
    r, ends = facts["recipe"], facts["ends"]
    fault = r["fault"]
    if facts["failed_at"] is not None:
        return _failed(fault, r["onset"], facts["failed_at"])
    if fault in ("blank_in_labels", "not_normalised", "probabilities_not_logs", "softmax_over_time"):
        causes = {"negative_loss", "not_normalised"}
        causes |= set() if fault in ("probabilities_not_logs", "softmax_over_time") else {"blank_in_labels", "labels"}
        return Label(frozenset({"bad_data"}), frozenset(causes), 0) if facts["least_loss"] < 0 else None
    if fault in _DEAD:
        also = {"all_infeasible": {"bad_data"}, "scale_stuck": {"non_finite"}}.get(fault, set())
        return Label(frozenset({"not_training"} | also), frozenset(_DEAD[fault]), 0)
    if fault in _MISMATCH:
        return _mismatched(facts)
    if fault in _CHECKED:
        return _checked(facts)
    if fault in _HALF_TRAINED:
        return _half_trained(facts)
    if fault == "labels_drift":
        return _drifted_labels(facts)
    if fault == "transcripts_gone":
        return _emptied(facts)
    if fault == "short":
        return _short(facts)
    if fault == "scale_shrinks":
        outcomes = frozenset({"not_training", "non_finite", "undecided"} | _state(ends[-1]))
        return Label(outcomes, frozenset({"precision", "gradient", "no_update"}), r["onset"])
    if fault in _HELD_BACK:
        return _held_back(facts)
    if fault == "norm_poisoned":
        return _poisoned(facts)
    if fault in ("small_corpus", "sure_of_its_errors", "weak_augmentation", "augmentation_cached", "far_too_wide"):
        return _learned_by_heart(facts)
    if fault == "accumulated_sum" and ends and LEARNED < ends[-1]["true_per"] < 0.85:  # it did not quite explode
        high = facts["end_loss"] > 1.5 * knows_nothing(facts)
        return Label(frozenset({"exploded", "slow", "undecided"}), frozenset({"rate_too_high"}), 0) if high else None
    if not ends:
        return Label(frozenset({"exploded"}), _causes(fault, set()), r["onset"]) if fault in _RATES + _DRIFTS else None
    if fault in _SMALL_STEPS:
        return _small_steps(facts)
    if fault == "updates_rounded_away":
        outcomes = frozenset({"not_training", "undecided"} | _state(ends[-1]))
        return Label(outcomes, frozenset({"precision", "step_too_small", "no_update"}), 0)
    if fault in ("softmax_twice", "reloads_checkpoint"):  # no word for a cause fits
        none_fits = frozenset({"unknown", "no_evidence", "no_information", "step_too_small", "labels"})
        return _never_learned(facts, none_fits)
    if fault == "one_row_off":  # pairs that are always the same wrong ones can be learned by heart
        never = _never_learned(facts, frozenset({"no_information", "labels", "train_eval", "overfitting"}))
        return None if never is None else replace(never, outcomes=never.outcomes | {"slow", "degraded"})
    if fault in _UNRELATED and r["onset"] == 0:
        return _never_learned(facts, frozenset({"no_information", "labels"}))
    if fault in _HARDLY_RELATED and r["onset"] == 0:
        return _hardly_learned(facts, frozenset({"no_information", "labels"}))
    if not r["fresh_noise"] or fault in ("augmentation_ends", "stuck_loader", "few_sentences"):
        return _overfitted(facts)
    if (
        fault in ("whole_lines", "metric_never_reset", "words_scored") and ends[-1]["per"] > LEARNED
    ):  # nobody could tell from the log that it is good
        return None
    own = _hurt_or_not(facts)
    if own is not None and fault == "trainer_skips":
        own = replace(own, outcomes=own.outcomes | {"bad_data"})
    if own is not None and own.healthy and fault in _HURT:
        return replace(own, passing=_passing(facts))
    return own


def knows_nothing(facts: dict[str, Any]) -> float:
    """Return the loss of a decoder that knows nothing, on the data of a training."""
    r = facts["recipe"]
    return min(_KNOWS_NOTHING[r["task"], r["reduction"]], facts["start_loss"] if not r["pretrained"] else float("inf"))


def in_view(label: Label, signals: Collection[str], distance: int) -> Label | None:
    """Return what is right of a log that has these signals, in readings at this distance; None if that is not clear.

    Args:
        label: What is true of the training.
        signals: The names of the signals in the log, those of its validations included.
        distance: The number of steps between two readings.
    """
    if label.shown_by is not None:
        if label.shown_by in signals:
            return label
        return None if label.unseen is None else in_view(label.unseen, signals, distance)
    outcomes, causes = set(label.outcomes), set(label.causes)
    hidden = {cause for cause in label.causes if cause in _EVIDENCE and not _EVIDENCE[cause] & {*signals}}
    vague = {"relapse", "unknown"} | ({"labels"} if "no_information" in label.causes else set())
    if hidden and not label.causes - hidden - vague:
        causes |= _UNKNOWN
    measured = {_MEASURED[cause] for cause in label.causes & _MEASURED.keys()}
    if measured and "not_training" not in label.outcomes and (distance > 1 or not measured <= {*signals}):
        # The first bad utterance is not in the log, or nobody counted: what is seen is a loss that is not finite.
        outcomes |= {"non_finite"}
        causes |= _UNKNOWN | {"loss", "gradient"}
    if "drift" in causes and "weight_norm" not in signals:
        causes |= {"rate_too_high"}
    if "bad_batch" in causes and distance > 1:  # one batch falls between two readings
        causes |= _UNKNOWN | {"rate_too_high", "relapse"}
    if "gradient" in causes and (distance > 1 or "grad_norm" not in signals):  # the next loss is not finite either
        causes |= _UNKNOWN | {"loss"}
    if "not_training" in outcomes and not _shows_death(label, signals):
        outcomes |= {"undecided", "blank_collapse", "mode_collapse"}
        causes |= _UNKNOWN
    if "per" not in signals and outcomes & {"stable", "slow"}:
        outcomes |= {"undecided"}
    if "per" not in signals and "undecided" in outcomes:
        causes |= {"no validation"}
    return replace(label, outcomes=frozenset(outcomes), causes=frozenset(causes))


def _shows_death(label: Label, signals: Collection[str]) -> bool:
    if "zero_loss" in label.causes:
        return True
    return "update_ratio" in signals or ("no_gradient" in label.causes and "grad_norm" in signals)


def _failed(fault: str | None, onset: int, failed_at: int) -> Label | None:
    if fault in _DATA:
        return Label(frozenset({"bad_data"}), frozenset({_DATA[fault]}), failed_at)
    if fault == "normaliser_poisoned":
        also = {"masked", "loss", "gradient", "unknown"}
        return Label(frozenset({"bad_data", "non_finite"}), frozenset({"non_finite_input"} | also), failed_at)
    if fault in ("empty_mask", "weight_of_unseen", "mean_of_none"):
        return Label(frozenset({"non_finite"}), frozenset({"loss"}), failed_at)
    if fault == "log_of_zero":
        return Label(frozenset({"non_finite"}), frozenset({"loss", "gradient", "precision"}), failed_at)
    if fault == "epsilon_underflows":  # the update that is not finite may fall between two that are measured
        causes = frozenset({"precision", "unknown", "loss", "gradient"})
        return Label(frozenset({"non_finite", "exploded"}), causes, failed_at)
    if fault in (
        "attention_masked",
        "norm_without_epsilon",
        "class_masked",
        "log_of_log_softmax",
    ):  # the inputs are finite, and the logits are not
        return Label(frozenset({"non_finite"}), frozenset({"loss", "gradient", "unknown"}), failed_at)
    if fault == "corrupted_file":  # a number that is finite, and its square is not
        causes = frozenset({"non_finite_input", "bad_batch", "loss", "gradient", "unknown"})
        return Label(frozenset({"bad_data", "non_finite", "exploded"}), causes, failed_at)
    if fault == "step_without_scaler":  # the gradient has left half precision
        return Label(frozenset({"non_finite"}), frozenset({"gradient", "precision"}), failed_at)
    if fault in ("nan_gradient", "root_of_zero"):
        return Label(frozenset({"non_finite"}), frozenset({"gradient"}), failed_at)
    if fault == "masked_nan":
        return Label(frozenset({"non_finite"}), frozenset({"loss", "gradient", "masked", "unknown"}), failed_at)
    if fault == "not_normalised":
        return Label(frozenset({"bad_data", "non_finite"}), frozenset({"negative_loss", "not_normalised"}), 0)
    if fault in (*_RATES, *_DRIFTS, "bad_batch", "not_zeroed", "loud_utterance"):
        return Label(frozenset({"exploded", "non_finite"}), _causes(fault, set()), onset)
    return None


def _causes(fault: str, state: set[str]) -> frozenset[str]:
    """The causes that are right for a training that was hurt by a fault and is in that state since."""
    also = {"relapse"} if state else set[str]()
    if fault == "unfrozen_too_fast":  # the rate in a log is that of the head, and as before
        return frozenset({"rate_too_high", "unknown"} | also)
    if fault == "rate_below_zero":  # it climbs where it should descend
        return frozenset({"rate_too_high", "drift", "unknown"} | also)
    if fault in (
        "second_moments_lost",
        "momentum_raised",
        "clip_lost",
        "betas_swapped",
        "weights_compound",
    ):  # the rate in a log is as before
        return frozenset({"rate_too_high", "drift", "unknown"} | also)
    if fault == "never_unscaled":
        return frozenset({"rate_too_high", "precision"} | also)
    if fault in _RATES:
        return frozenset({"rate_too_high"} | also)
    if fault == "temperature_falls":  # until the logits leave half precision
        return frozenset({"drift", "unknown", "precision"} | also)
    if fault in _DRIFTS:
        return frozenset({"drift", "unknown"} | also)
    own = {
        "bad_batch": {"bad_batch"},
        "loud_utterance": {"bad_batch"},
        "not_zeroed": {"drift", "unknown", "rate_too_high", *also},
        "decay": {"decay", "relapse"},
        "decay_unscaled": {"decay", "relapse"},
        "signal_fades": {"relapse", "unknown", "data", "no_information"},
        "other_room": {"relapse", "unknown", "labels", "train_eval", "overfitting"},
        "channels_lost": {"relapse", "unknown", "data"},
        "pruned_too_far": {"relapse", "unknown"},
        "two_bits": {"relapse", "unknown", "precision"},
        "noise_runs_away": {"relapse", "unknown", "no_information", "labels"},
        "shuffled_labels": {"relapse", "unknown", "no_information", "labels"},
        "masks_accumulate": {"relapse", "unknown", "no_information", "labels"},
        "half_of_the_signs_left": {"relapse", "unknown", "labels", "train_eval", "overfitting"},
    }
    return frozenset(own[fault])


def _mismatched(facts: dict[str, Any]) -> Label | None:
    end, fault = facts["ends"][-1], facts["recipe"]["fault"]
    learned = min(end["true_per"], end["train_per"]) <= LEARNED or fault in _ANOTHER_TASK
    apart = end["per"] - min(end["true_per"], end["train_per"]) >= 0.25
    if not learned or facts["end_loss"] > 0.5 * knows_nothing(facts):
        return None
    if fault != "half_labels_shifted" and (end["per"] < 0.8 or not (apart or fault in _ANOTHER_TASK)):
        return None
    outcomes = {"undecided", "slow", "mode_collapse", "blank_collapse", "bad_data"}
    if fault in (
        "half_labels_shifted",
        "accuracy_as_error",
        "same_transcript",
        "another_day_validated",
        "synthetic_only",
    ):
        outcomes |= {"degraded"}
    return Label(frozenset(outcomes), frozenset(_MISMATCH[fault]), 0)


def _short(facts: dict[str, Any]) -> Label | None:
    r, ends = facts["recipe"], facts["ends"]
    if ends[-1]["true_per"] <= LEARNED:
        return None
    causes = {"too_few_readings", "no_evidence"} | ({"in_warmup"} if r["warmup"] > r["steps"] else set())
    return Label(frozenset({"undecided"} | ({"slow"} if ends[-1]["true_per"] < 0.9 else set())), frozenset(causes), 0)


def _small_steps(facts: dict[str, Any]) -> Label | None:
    end, later = facts["ends"][-1], facts["later"]
    fault = facts["recipe"]["fault"]
    causes = frozenset({"precision"} if fault == "clip_before_unscale" else {"step_too_small"})
    causes |= {"in_warmup"} if fault in ("warmup_again", "warmup_outlasts") else set()
    causes |= {"bad_batch"} if fault == "moments_poisoned" else set()
    causes |= _UNKNOWN | {"no_information"} if fault == "layerwise_decay" else set()  # the rate in a log is the head's
    if end["true_per"] <= LEARNED:
        return Label(frozenset({"stable", "slow"}))
    state = _state(end)
    if fault in _RATE_VANISHES:  # the rate is soon 0 in float32, and nothing changes any more
        outcomes = {"slow" if end["true_per"] < 0.9 else "undecided", "not_training"} | state
        return Label(frozenset(outcomes), causes | {"no_update", "rate_zero"}, 0)
    if (later and later[-1]["true_per"] <= LEARNED) or not state:
        return Label(frozenset({"slow", "undecided"} | state), causes, 0)
    return Label(frozenset(state | {"undecided"}), causes, 0)


def _never_learned(facts: dict[str, Any], causes: frozenset[str]) -> Label | None:
    end, later = facts["ends"][-1], facts["later"]
    if min(e["true_per"] for e in [end, *later]) < 0.85:
        return None
    return Label(frozenset({"undecided"} | _state(end)), causes, 0)


def _hardly_learned(facts: dict[str, Any], causes: frozenset[str]) -> Label | None:
    end, later = facts["ends"][-1], facts["later"]
    if min(e["true_per"] for e in [end, *later]) < 0.75:
        return None
    return Label(frozenset({"undecided", "slow"} | _state(end)), causes, 0)


def _held_back(facts: dict[str, Any]) -> Label | None:
    end = facts["ends"][-1]
    if end["true_per"] <= LEARNED and end["loss"] < knows_nothing(facts):
        return Label(frozenset({"stable", "slow"}))
    if end["true_per"] < 0.7:
        return None
    causes = {"no_information", "labels", "unknown", "no_evidence"}
    causes |= {"step_too_small"} if facts["recipe"]["fault"] != "raw_inputs" else set()
    return Label(frozenset({"undecided", "slow"} | _state(end)), frozenset(causes), 0)


def _poisoned(facts: dict[str, Any]) -> Label | None:
    end = facts["ends"][-1]
    if end["train_per"] > LEARNED or end["true_per"] < 0.9:
        return None
    outcomes = frozenset({"undecided", "slow", "bad_data", "non_finite"} | _state(end))
    return Label(outcomes, frozenset({"train_eval", "labels", "metric", "validation_loss", "non_finite_input"}), 0)


def _learned_by_heart(facts: dict[str, Any]) -> Label | None:
    ends, end = facts["ends"], facts["ends"][-1]
    least, best = min(ends, key=lambda e: e["loss"]), min(e["true_per"] for e in ends)
    if facts["end_loss"] > 0.3 * end["loss"]:
        return None
    rise = end["loss"] / least["loss"]
    bad = end["true_per"] > LEARNED
    outcomes = {"slow", "undecided"} if bad else {"stable", "slow"}
    if end["true_per"] > best + 0.1:
        outcomes -= {"stable"}
    outcomes |= {"degraded"} if rise > 1.15 or end["true_per"] > best + 0.05 else set()
    causes = {"overfitting"} | ({"labels", "train_eval"} if bad and rise < 1.5 else set())
    return Label(frozenset(outcomes), frozenset(causes), int(least["step"]))


def _converged(facts: dict[str, Any]) -> bool:
    ends, later = facts["ends"], facts["later"]
    best, end = min(e["true_per"] for e in ends), ends[-1]["true_per"]
    gained = end - min((e["true_per"] for e in later), default=end)
    most = 0.85 if facts["recipe"]["half"] in ("field_design", "field_test", "field_second_test") else 0.7
    return bool(end < most and end < best + 0.05 and gained < 0.1)


def _overfitted(facts: dict[str, Any]) -> Label | None:
    ends = facts["ends"]
    least = min(ends, key=lambda e: e["loss"])
    best, end = min(e["true_per"] for e in ends), ends[-1]
    if end["loss"] < 1.5 * least["loss"] or facts["end_loss"] > 0.5 * end["loss"]:
        # Few sentences are learned by heart from the start, so it is not clear what is healthy.
        mild = end["loss"] > 1.15 * least["loss"] or facts["recipe"]["fault"] == "few_sentences"
        return Label(frozenset({"stable", "slow"})) if end["true_per"] <= LEARNED and not mild else None
    outcomes = {"degraded"}
    if end["true_per"] < best + 0.1:
        outcomes |= {"stable"} if end["true_per"] <= LEARNED else {"slow", "undecided"}
    return Label(frozenset(outcomes), frozenset({"overfitting"}), int(least["step"]))


def _hurt_or_not(facts: dict[str, Any]) -> Label | None:
    r, ends, later = facts["recipe"], facts["ends"], facts["later"]
    fault, onset, end = r["fault"], r["onset"], ends[-1]
    state = _state(end) if end["step"] >= onset else set[str]()
    known = [facts["initial"], *ends] if r["pretrained"] else ends
    best = min(known, key=lambda e: e["true_per"])
    if facts["cut"]:
        return Label(frozenset({"exploded"} | state), _causes(fault, state), onset)
    nothing = knows_nothing(facts)
    borne = fault in _BORNE or (fault == "never_unscaled" and r["optimizer"] != "sgd")  # Adam bears any scale
    low = max(end["loss"], facts["end_loss"]) < nothing or borne
    lost = end["true_per"] - best["true_per"]
    if end["true_per"] <= LEARNED and lost <= 0.1 and low:
        if lost > 0.05 and end["true_per"] > 2 * best["true_per"]:
            return None
        return Label(frozenset({"stable"} | ({"slow"} if end["true_per"] > 0.3 else set())))
    if fault in (None, "few_electrodes") and _converged(facts):
        return Label(frozenset({"stable", "slow"}))
    if borne:
        recovers = bool(later) and later[-1]["true_per"] <= LEARNED
        return Label(frozenset({"stable", "slow", "undecided"})) if recovers else None
    if fault in _FROM_START and not r["pretrained"]:
        return _bad_from_start(facts, state)
    if fault in _CLIMBS:
        onset = int(best["step"])
    if best["true_per"] > LEARNED and fault == "range_test_goes_on" and facts["end_loss"] > 2 * nothing:
        return Label(frozenset({"exploded"} | state), _causes(fault, state), onset)
    if best["true_per"] > LEARNED and fault in (
        *("rate_peaks", "warmup_never_ends", "peak_too_high", "cosine_ends_high", "cosine_ends_high_cut"),
        "cycles_too_high",
    ):
        bad = _bad_from_start(facts, state)
        return bad if bad is None or lost < _HARM else replace(bad, outcomes=bad.outcomes | {"degraded"})
    if best["true_per"] > LEARNED:  # it had hardly learned anything that it could lose
        decayed = fault == "decay" and end["true_per"] > 0.85
        return Label(frozenset({"undecided"} | state), frozenset({"decay"}), onset) if decayed else None
    if fault == "decay" and onset == 0:  # it learned less than it could, and nobody knows what to call that
        return None
    # Losses and error rates contradict each other. The halves before were labelled without this rule.
    if r["half"] not in ("field_design", "field_test") and end["true_per"] <= LEARNED and lost <= 0.1:
        return None
    gained = nothing - best["loss"]
    if facts["end_loss"] > 2 * nothing:
        outcomes = {"exploded"}
    elif lost < _HARM:
        return None
    elif facts["end_loss"] > nothing - 0.6 * gained:
        outcomes = {"exploded", "degraded"}
    else:
        outcomes = {"degraded"}
    return Label(frozenset(outcomes | state), _causes(fault, state), onset)


def _bad_from_start(facts: dict[str, Any], state: set[str]) -> Label | None:
    if (facts["later"] and facts["later"][-1]["true_per"] <= LEARNED) or facts["ends"][-1]["true_per"] < 0.85:
        return None
    high = facts["end_loss"] > 1.5 * knows_nothing(facts)
    outcomes = {"exploded"} | state | (set() if high else {"slow", "undecided"})
    if min(e["true_per"] for e in facts["ends"]) <= LEARNED:
        outcomes |= {"degraded"}
    return Label(frozenset(outcomes), _causes(facts["recipe"]["fault"], set()), 0)


def _passing(facts: dict[str, Any]) -> frozenset[str]:
    """What was true of a training that recovered, while it was hurt."""
    match facts["recipe"]["fault"]:
        case (
            "head_replaced" | "array_moved" | "shrunk_and_perturbed" | "resumed_from_older"
        ):  # for a while it knew nothing again
            return frozenset({"degraded", "exploded", "blank_collapse", "mode_collapse"})
        case "table_changes" | "encoder_lost" | "peak_too_high" | "bad_shard" | "vocabulary_grows" | "electrodes_die":
            return frozenset({"degraded", "exploded", "blank_collapse", "mode_collapse"})
        case "gain_changes" | "layer_inserted":
            return frozenset({"degraded", "exploded", "blank_collapse", "mode_collapse"})
        case "bad_batch_skipped" | "trainer_skips":  # the batch was bad
            return frozenset({"bad_data", "non_finite"})
    return frozenset({"degraded", "exploded"} if facts["largest_loss"] > 2 * knows_nothing(facts) else ())


def _checked(facts: dict[str, Any]) -> Label | None:
    """Data that are wrong at every step: in a log without the numbers of the check, only their effect is seen."""
    r, end = facts["recipe"], facts["ends"][-1]
    causes, signal = _CHECKED[r["fault"]]
    if facts["largest_loss"] == 0:  # not one utterance is left, which shows in every log
        outcomes = frozenset({"not_training", "bad_data"})
        return Label(outcomes, frozenset(_DEAD["all_infeasible"]), 0)
    seen_in_rates = ("transcripts_lost", "targets_flattened")
    negative = {"negative_loss"} if facts["least_loss"] < 0 else set[str]()
    if r["fault"] in _LITTLE_HARM:
        unseen = _hurt_or_not(facts | {"recipe": r | {"fault": None}})
        state = set[str]() if unseen is None else set(unseen.outcomes - {"stable"})
        if unseen is not None and negative:  # which shows in every log
            unseen = replace(unseen, outcomes=unseen.outcomes | {"bad_data"}, causes=frozenset(negative))
    elif min(e["true_per"] for e in facts["ends"]) > 0.7:
        state = {"undecided", "slow"} | _state(end)
        looks_like = _UNKNOWN | {"no_information", "labels", "train_eval"}
        unseen = Label(frozenset(state | {"bad_data"}), looks_like, 0) if r["fault"] in seen_in_rates else None
    else:
        return None
    return Label(frozenset({"bad_data"} | state), frozenset(causes | negative), 0, shown_by=signal, unseen=unseen)


def _half_trained(facts: dict[str, Any]) -> Label | None:
    """Only the head is trained: what it reads from random features is learned slowly, or not at all."""
    end = facts["ends"][-1]
    if end["true_per"] <= 0.7:
        return None
    causes, signal = _HALF_TRAINED[facts["recipe"]["fault"]]
    outcomes = frozenset({"not_training", "slow", "undecided"} | _state(end))
    unseen = Label(outcomes - {"not_training"}, _UNKNOWN | causes | {"no_information", "step_too_small"}, 0)
    return Label(outcomes, frozenset(causes), 0, shown_by=signal, unseen=unseen)


def _drifted_labels(facts: dict[str, Any]) -> Label | None:
    """Training goes on with another class table, which is learned, and the first is forgotten."""
    end, best = facts["ends"][-1], min(e["true_per"] for e in facts["ends"])
    if best > LEARNED or end["true_per"] - best < 0.3 or facts["end_loss"] > 0.6 * knows_nothing(facts):
        return None
    causes = frozenset({"labels", "train_eval", "relapse", "unknown"})
    return Label(frozenset({"degraded"} | _state(end)), causes, facts["recipe"]["onset"])


def _emptied(facts: dict[str, Any]) -> Label | None:
    """There is nothing but blank to learn any more, and the validation shows what was lost."""
    end, best, onset = facts["ends"][-1], min(e["true_per"] for e in facts["ends"]), facts["recipe"]["onset"]
    if best > LEARNED or end["true_per"] - best < 0.3:
        return None
    # If blank is so sure that the loss is 0, so is its gradient.
    outcomes = frozenset({"degraded"} | _state(end) | ({"not_training"} if facts["end_loss"] == 0 else set()))
    looks_like = frozenset({"relapse", "unknown", "labels", "train_eval", "overfitting", "no_information"})
    looks_like |= {"zero_loss", "no_gradient"} if facts["end_loss"] == 0 else set()
    unseen = Label(outcomes | {"bad_data"}, looks_like, onset)
    return Label(outcomes | {"bad_data"}, frozenset({"empty_target"}), onset, shown_by="empty_targets", unseen=unseen)


def _state(end: dict[str, float]) -> set[str]:
    """The words for a decoder that says nothing, or only two labels."""
    state = {"mode_collapse"} if end["two_commonest"] >= _MUCH and end["silent"] < _MUCH else set[str]()
    return state | ({"blank_collapse"} if end["silent"] > 1 - _MUCH and (state or end["silent"] >= _MUCH) else set())

"""The trainings of the sixth test half: kinds that none of the halves before it has.

It has 54 families with two trainings each, and three new tasks: online handwriting, a recorded cortex, dialled numbers.
New are a TDNN, a state space model and a stack of LSTMs, Muon and Prodigy. The families were chosen, and are as many,
as one meets them where people ask about trainings with CTC. About half of the trainings are healthy. About half of
those look odd: fine-tuned adapters, losses below 0, a loss that is logged in blocks, changes of the data, a metric
that is never reset. The faults are explosions, numbers that are not finite, plateaus, dead gradients, steps that are
too small, wrong labels, metrics and modes, what was learned and is lost, and data that the loss is given wrongly.
"""

from dataclasses import replace

from experiments.detection.field.recipe import Draw, FieldRecipe, Half, Kind, Model, Task, between, one_of

_NOISE: dict[Task, float] = {"pen": 0.3, "cortex": 0.8, "dialled": 1.0}


def sixth_base(family: str, half: Half, seed: int, draw: Draw) -> FieldRecipe:
    """Draw a healthy training."""
    task: Task = one_of(draw, "pen", "cortex", "dialled")
    model: Model = one_of(draw, "tdnn", "ssm", "blstm")
    if task == "pen" and model == "blstm":  # it would take too long
        model = "tdnn"
    return FieldRecipe(
        family,
        half,
        seed,
        task=task,
        model=model,
        units=one_of(draw, 32, 40),
        batch=one_of(draw, 8, 10),
        noise=_NOISE[task] * one_of(draw, 0.8, 1.2),
        utterances=600,
        steps=one_of(draw, 500, 550),
        lr=one_of(draw, 7e-3, 9e-3) if model == "blstm" else one_of(draw, 3e-3, 5e-3),
        warmup=one_of(draw, 40, 80),
        schedule=one_of(draw, "constant", "exponential", "cosine"),
        clip=one_of(draw, 1.0, 5.0, None),
        reduction=one_of(draw, "per_utterance_sum", "per_label_mean"),
    )


def _midway(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Let it happen when the training has learned."""
    return replace(_soon_learned(r, draw), onset=int(draw.integers(240, 310)), schedule="constant", steps=550)


def _soon_learned(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Take a model that leaves the plateau early."""
    return _with(r, one_of(draw, "tdnn", "ssm"))


def _with(r: FieldRecipe, model: Model) -> FieldRecipe:
    return replace(r, model=model, lr=4e-3)


def _fine_tuned(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(_soon_learned(r, draw), pretrained=400, schedule="cosine", steps=500)


# Healthy families.


def _pens_cortices_and_numbers(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    return replace(r, percent=draw.random() < 0.3)


def _orthogonal_updates(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Muon, with its usual rate."""
    return replace(r, optimizer="muon", lr=one_of(draw, 0.01, 0.02))


def _rate_of_one(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Prodigy finds the rate itself, and the one in the log is 1."""
    return replace(_soon_learned(r, draw), optimizer="prodigy", lr=1.0, warmup=1)


def _lower_triangles(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate goes up and down, each time half as high as before."""
    return replace(_soon_learned(r, draw), schedule="triangles", lr=8e-3, warmup=1)


def _late_lstms(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Two layers of LSTMs stay on the blank plateau for half of their time."""
    made = replace(r, model="blstm", schedule="constant", steps=750, noise=0.4)
    if draw.random() < 0.5:
        return replace(made, task="cortex", lr=between(draw, 1.5e-3, 3e-3))
    return replace(made, task="dialled", lr=between(draw, 1e-3, 2e-3))


def _adapters(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A trained model, all of which is frozen but for matrices of low rank that are added, and its head."""
    return replace(_fine_tuned(r, draw), fault="adapters", lr=one_of(draw, 3e-3, 6e-3))


def _new_speaker(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A trained model is adapted to a speaker that it has not heard, at a low rate."""
    return replace(_fine_tuned(r, draw), fault="new_speaker", lr=one_of(draw, 3e-4, 1e-3))


def _statistics_kept(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A trained model is trained on, and its batch norm stays in evaluation mode."""
    made = replace(_fine_tuned(r, draw), model="tdnn", fault="statistics_kept")
    return replace(made, lr=one_of(draw, 3e-4, 1e-3))


def _distilled(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A model learns from a trained one, too, whose part of the loss remains high."""
    made = replace(_soon_learned(r, draw), fault="distilled", pretrained=400, reduction="per_utterance_sum")
    return replace(made, strength=one_of(draw, 2.0, 5.0))


def _entropy_bonus(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Entropy is taken from the loss, so that the model is not too sure: the loss falls below 0."""
    made = replace(_soon_learned(r, draw), fault="entropy_bonus", reduction="per_label_mean")
    return replace(made, strength=one_of(draw, 0.3, 0.6))


def _artefacts(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Single frames are far too loud: chewing, or a loose contact. The loss is full of spikes."""
    return replace(_soon_learned(r, draw), fault="artefacts", strength=one_of(draw, 8.0, 15.0), clip=1.0)


def _domains_alternate(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A shard of clean recordings, then one of noisy ones, and so on: the loss has two levels."""
    made = replace(_soon_learned(r, draw), fault="domains_alternate", span=one_of(draw, 50, 90))
    return replace(made, strength=2 * made.noise)


def _vocabulary_grows(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It begins with some of the classes. The others come later, and the loss leaps."""
    made = replace(_midway(r, draw), fault="vocabulary_grows", task=one_of(draw, "pen", "dialled"))
    return replace(made, strength=15 if made.task == "pen" else 7, onset=int(draw.integers(180, 240)))


def _clipped_by_value(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Each number of the gradient is limited, to so little that most are at the limit."""
    return replace(r, fault="clipped_by_value", clip=None, strength=one_of(draw, 1e-4, 1e-3), schedule="cosine")


def _large_steps_skipped(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The trainer makes no step if the gradient is larger than usual."""
    return replace(_soon_learned(r, draw), fault="large_steps_skipped", strength=one_of(draw, 1.5, 2.0), clip=None)


def _few_electrodes(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Hardly an electrode works, so it comes to rest at a high error rate."""
    made = replace(_soon_learned(r, draw), fault="few_electrodes", task="cortex", strength=one_of(draw, 3, 4))
    return replace(made, noise=0.5, schedule="cosine", steps=600)


def _logged_in_blocks(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It logs the mean loss of the last block of steps, and the same number until the next block ends."""
    return replace(r, fault="logged_in_blocks", span=one_of(draw, 20, 50))


def _long_recordings(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Recordings are long, and the loss is a sum: it begins at 50 and more."""
    made = replace(_soon_learned(r, draw), fault="long_recordings", span=4, reduction="per_utterance_sum")
    return replace(made, utterances=200, batch=4, steps=500, task=one_of(draw, "pen", "dialled"), model="tdnn")


def _continues_from_average(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It goes on from the mean of the weights that it has had."""
    return replace(_midway(r, draw), fault="continues_from_average", span=100)


def _electrodes_die(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A third of the electrodes dies, and it learns to hear with the others."""
    return replace(_midway(r, draw), fault="electrodes_die", task="cortex", strength=one_of(draw, 10, 14))


def _weight_ramps(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The weight of the loss rises from next to nothing, and so does the loss."""
    return replace(r, fault="weight_ramps", span=one_of(draw, 150, 250))


def _pseudo_labels(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, half of the transcripts are those that the model itself had heard."""
    return replace(_midway(r, draw), fault="pseudo_labels")


def _metric_never_reset(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The metric is a mean over all validations so far, and falls late."""
    return replace(_soon_learned(r, draw), fault="metric_never_reset")


def _pairs_with_batch_norm(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Batch norm over two utterances: a noisy loss."""
    return replace(_with(r, "tdnn"), batch=2, lr=3e-3)


# Faulty families.


def _betas_swapped(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Adam's two decays are given in the wrong order."""
    made = replace(r, fault="betas_swapped", lr=one_of(draw, 0.01, 0.03), clip=one_of(draw, None, 5.0))
    return replace(made, schedule="constant", model=one_of(draw, "tdnn", "ssm"))


def _orthogonal_too_fast(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Muon at a rate that is usual for SGD of another library."""
    made = replace(r, optimizer="muon", fault="rate_start", lr=between(draw, 2, 20), model="blstm")
    return replace(made, schedule="constant", clip=one_of(draw, None, 5.0), half_logits=draw.random() < 0.5)


def _triangles_too_high(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The peaks of a cyclic rate are far too high. It learns on the way up."""
    made = replace(r, fault="cycles_too_high", schedule="triangles", warmup=1, lr=between(draw, 2, 6))
    return replace(made, model="blstm", clip=one_of(draw, None, 5.0))


def _unstable_state(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Nothing bounds the decay of a state, which becomes growth."""
    made = replace(_midway(r, draw), fault="unstable_state", model="ssm", strength=between(draw, 0.005, 0.03))
    return replace(made, clip=None, half_logits=draw.random() < 0.5, stop_after=one_of(draw, 5, 120))


def _killed_with_unstable_state(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """As in `_unstable_state`, and the log ends on the way up."""
    made = replace(_midway(r, draw), fault="unstable_state_cut", model="ssm", strength=between(draw, 0.004, 0.01))
    return replace(made, clip=None, span=(4, 30, 90)[r.seed % 3])


def _checkpoint_corrupted(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It is resumed from a file in which some weights have other exponents."""
    made = replace(_midway(r, draw), fault="checkpoint_corrupted", strength=between(draw, 300, 30000))
    return replace(made, model="ssm", clip=one_of(draw, None, 5.0), task=one_of(draw, "cortex", "dialled"))


def _weights_compound(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The weight of the loss is multiplied at every step, where it should be set."""
    made = replace(_midway(r, draw), fault="weights_compound", strength=between(draw, 0.02, 0.1), clip=None)
    made = replace(made, optimizer="sgd", lr=0.03, reduction="per_label_mean", weight_decay=0.0, model="tdnn")
    return replace(made, half_logits=draw.random() < 0.5, stop_after=one_of(draw, 5, 120))


def _norm_without_epsilon(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The model standardises each frame, and divides digital silence by 0."""
    made = replace(r, fault="norm_without_epsilon", task=one_of(draw, "cortex", "dialled"))
    return replace(made, onset=one_of(draw, 0, 130, 310), stop_after=one_of(draw, 5, 120))


def _corrupted_file(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The bytes of a file were read as another type: finite numbers, but the sum of two is not."""
    made = replace(_soon_learned(r, draw), fault="corrupted_file", onset=one_of(draw, 2, 170, 350))
    return replace(made, stop_after=one_of(draw, 5, 120))


def _class_masked(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The logit of a class that should not occur is minus infinity, and it occurs."""
    made = replace(r, fault="class_masked", strength=float(draw.integers(1, 10)), onset=one_of(draw, 0, 90, 250))
    return replace(made, stop_after=one_of(draw, 5, 120))


def _gradients_underflow(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A mean over very much, whose gradients are 0 in half precision. Nobody scales the loss."""
    made = replace(r, fault="gradients_underflow", strength=one_of(draw, 1e-10, 1e-9), weight_decay=0.0)
    return replace(made, reduction="per_label_mean")


def _clipped_to_zero(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The limit of the gradient is 0, which was meant to say that there is none."""
    return replace(r, fault="clipped_to_zero", clip=0.0, weight_decay=0.0)


def _frozen_early(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A schedule freezes the encoder after a few steps, when it has learned nothing."""
    made = replace(r, fault="frozen_early", onset=int(draw.integers(10, 30)), model="blstm", warmup=80)
    return replace(made, task=one_of(draw, "cortex", "dialled"), weight_decay=0.0)


def _reloads_checkpoint(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The first checkpoint is loaded at the start of each epoch, where it should be loaded once."""
    return replace(r, fault="reloads_checkpoint", span=one_of(draw, 20, 30), warmup=80, model="blstm", lr=4e-3)


def _frames_shuffled(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The loader shuffles the frames, and not the utterances."""
    return replace(r, fault="frames_shuffled")


def _one_recording(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The cache has one key for all recordings, so each transcript comes with the same one."""
    return replace(r, fault="one_recording")


def _dither_in_other_unit(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The noise that is added has the size of integers, and the features are between -1 and 1."""
    return replace(r, fault="dither", strength=between(draw, 12, 60))


def _layerwise_decay_too_strong(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The rate of each layer is a part of that of the layer above it, and next to nothing in the encoder."""
    made = replace(r, fault="layerwise_decay", strength=one_of(draw, 1e-5, 1e-4), model="blstm", lr=2e-3)
    return replace(made, task=one_of(draw, "cortex", "dialled"))


def _estimate_never_grows(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Prodigy may not raise the rate with which it begins."""
    return replace(r, fault="small_step", optimizer="prodigy", lr=1.0)


def _moments_poisoned(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """One early gradient is so large that Adam remembers it to the end, and makes no more steps worth the name."""
    made = replace(r, fault="moments_poisoned", strength=between(draw, 1e5, 1e8), onset=int(draw.integers(3, 15)))
    return replace(made, clip=None, warmup=80, model=one_of(draw, "ssm", "blstm"))


def _stereo_validated(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The validation files have two channels, which are read as one that is twice as long."""
    return replace(_soon_learned(r, draw), fault="stereo_validated", task=one_of(draw, "pen", "cortex"))


def _decodes_the_beginning(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The decoder is given lengths that are divided once too often, and reads the beginning."""
    return replace(_soon_learned(r, draw), fault="decodes_the_beginning")


def _layer_missing_in_evaluation(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Layers that are dropped at random in training are dropped for good in evaluation."""
    return replace(_soon_learned(r, draw), fault="layer_missing_in_evaluation")


def _synthetic_only(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """It is trained on a clean synthetic voice, and validated on noisy recordings."""
    made = replace(_soon_learned(r, draw), fault="synthetic_only", strength=5.0, noise=0.1)
    return replace(made, task=one_of(draw, "cortex", "dialled"))


def _weak_augmentation(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """A few dozen utterances, with hardly any augmentation."""
    made = replace(_soon_learned(r, draw), fault="weak_augmentation", fresh_noise=False, weight_decay=0.0)
    made = replace(made, utterances=one_of(draw, 40, 60), task=one_of(draw, "cortex", "pen"), schedule="constant")
    return replace(made, noise=0.9 if made.task == "cortex" else 0.3)


def _two_bits(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """From some step on, the weights have three values, and so few that much is lost."""
    return replace(_midway(r, draw), fault="two_bits", strength=1.0)


def _noise_runs_away(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The noise that is added grows at every step, until nothing else is heard in training."""
    return replace(_midway(r, draw), fault="noise_runs_away", strength=between(draw, 0.02, 0.06))


def _lengths_swapped(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The lengths of inputs and labels are given in the wrong order."""
    made = replace(r, fault="lengths_swapped", zero_infinity=r.seed % 2 == 0, weight_decay=0.0)
    return replace(made, stop_after=one_of(draw, 5, 120), reduction="per_utterance_sum")


def _targets_flattened(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The labels are given in one row, with their padding, where the loss expects none."""
    return replace(r, fault="targets_flattened")


def _softmax_over_time(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """The softmax goes over the frames, and not over the classes."""
    return replace(r, fault="softmax_over_time", clip=5.0)


_KINDS: tuple[Kind, ...] = (
    *(_pens_cortices_and_numbers, _late_lstms, _artefacts, _pseudo_labels),
    *(_orthogonal_too_fast, _killed_with_unstable_state, _weak_augmentation, _orthogonal_updates),
    *(_rate_of_one, _lower_triangles, _statistics_kept, _distilled),
    *(_entropy_bonus, _domains_alternate, _clipped_by_value, _large_steps_skipped),
    *(_logged_in_blocks, _vocabulary_grows, _few_electrodes, _new_speaker),
    *(_continues_from_average, _electrodes_die, _weight_ramps, _metric_never_reset),
    *(_pairs_with_batch_norm, _triangles_too_high, _unstable_state, _moments_poisoned),
    *(_noise_runs_away, _betas_swapped, _checkpoint_corrupted, _weights_compound),
    *(_class_masked, _gradients_underflow, _clipped_to_zero, _frozen_early),
    *(_reloads_checkpoint, _frames_shuffled, _one_recording, _dither_in_other_unit),
    *(_layerwise_decay_too_strong, _estimate_never_grows, _stereo_validated, _decodes_the_beginning),
    *(_layer_missing_in_evaluation, _synthetic_only, _two_bits, _lengths_swapped),
    *(_targets_flattened, _softmax_over_time),
    *(_adapters, _long_recordings, _norm_without_epsilon, _corrupted_file),
)
SIXTH_TEST: dict[Kind, int] = dict.fromkeys(_KINDS, 2)

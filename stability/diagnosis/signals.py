"""The registry of signals: every number that is measured at a training step, in the order in which it is written.

A trial writes its signals to `signals.csv`, one row a step. A Monitor measures those for which the user's loop gives it
what they need. It also measures some that a trial does not need, because a trial's data are checked before it trains.
To add a signal, add it here, and compute it in `stability/engine/step.py`.
"""

from dataclasses import dataclass, replace

MOST_UTTERANCES = 1000  # that `different_utterances` counts
EXPENSIVE_EVERY = 10  # steps between two measurements of a signal that costs a pass over all weights or all logits


@dataclass(frozen=True)
class Signal:
    """One number, measured at a training step.

    In a name, `N` stands for the number of a GRU layer. `every` is the number of steps between two measurements. A
    Monitor measures inputs and the applied norm only every 10th step, too. `in_trials` is false if only a Monitor
    measures it.
    """

    name: str
    unit: str
    meaning: str
    every: int = 1
    in_trials: bool = True


_ORDER = (
    Signal("loss", "nats", "the training loss, reduced as the configuration says"),
    Signal("loss_per_label", "nats", "each utterance's loss divided by its number of labels, mean over the batch"),
    Signal("grad_norm", "", "Euclidean norm of the whole gradient, before the clip"),
    Signal("grad_norm.day", "", "the part of the gradient norm in the day layers"),
    Signal("grad_norm.h0", "", "the part of the gradient norm in the initial state"),
    Signal("grad_norm.gru.N", "", "the part of the gradient norm in GRU layer N"),
    Signal("grad_norm.head", "", "the part of the gradient norm in the linear head"),
    Signal("clipped", "0 or 1", "1 if the gradient was clipped at this step"),
    Signal("applied_norm", "", "gradient norm as applied, after the clip and the unscaling; 0 if the step was skipped"),
    Signal("update_ratio", "share", "norm of the update over norm of the trained weights", EXPENSIVE_EVERY),
    Signal("weight_norm", "", "Euclidean norm of all weights, before the update", EXPENSIVE_EVERY),
    Signal("blank_fraction", "share", "share of frames whose best class is blank"),
    Signal("distinct_phonemes", "classes", "number of other classes that are the best of some frame"),
    Signal("frame_information", "nats", "mutual information between frame and non-blank class", EXPENSIVE_EVERY),
    Signal(
        "input_max",
        "standard deviations",
        "largest absolute input of the batch, noise included; not finite if any is not",
    ),
    Signal("infeasible_targets", "utterances", "utterances of the batch with too few frames for CTC to align"),
    Signal("labels", "labels", "labels of an utterance, mean over the batch"),
    Signal(
        "different_utterances",
        "utterances",
        "different utterances that are trained on; a Monitor counts their names so far; 1,000 stands for 1,000 or more",
        EXPENSIVE_EVERY,
    ),
    Signal("lr", "", "learning rate"),
    Signal("effective_lr", "", "lr / (median root of the second moments + epsilon)", EXPENSIVE_EVERY),
    Signal("epsilon_dominance", "share", "share of roots of the second moments below epsilon", EXPENSIVE_EVERY),
    Signal("loss_scale", "factor", "the factor on the loss in fp16; 1 otherwise"),
    Signal("utterances", "utterances", "utterances of the batch", in_trials=False),
    Signal("empty_targets", "utterances", "utterances of the batch without labels", in_trials=False),
    Signal("blanks_in_labels", "utterances", "utterances whose labels contain the class of blank", in_trials=False),
    Signal("labels_out_of_range", "utterances", "utterances with a label that is no class", in_trials=False),
    Signal("lengths_too_long", "utterances", "utterances with more frames than the logits have", in_trials=False),
    Signal("axes_swapped", "0 or 1", "1 if the logits have their frames before their batch", in_trials=False),
    Signal("skipped", "0 or 1", "of a bad batch: 1 if training went on without it", in_trials=False),
    Signal(
        "batch_norm",
        "0 or 1",
        "1 if the model normalises by batches, and in evaluation by running statistics",
        EXPENSIVE_EVERY,
        in_trials=False,
    ),
    Signal(
        "unoptimized",
        "share",
        "parameters that have a gradient and that no optimizer changes",
        EXPENSIVE_EVERY,
        in_trials=False,
    ),
    Signal("no_gradient", "share", "parameters in the optimizer without a gradient", EXPENSIVE_EVERY, in_trials=False),
    Signal("frozen", "share", "parameters that do not require a gradient", EXPENSIVE_EVERY, in_trials=False),
)
SIGNALS = {signal.name: signal for signal in _ORDER}


def signals_of(layers: int) -> tuple[Signal, ...]:
    """Return the signals of a trial whose decoder has that many GRU layers, in the order in which they are written."""
    expanded: list[Signal] = []
    for signal in filter(lambda signal: signal.in_trials, SIGNALS.values()):
        if signal.name.endswith(".N"):
            part = signal.name.removesuffix("N")
            expanded += [replace(signal, name=f"{part}{layer}") for layer in range(layers)]
        else:
            expanded.append(signal)
    return tuple(expanded)


def signal_names(layers: int) -> tuple[str, ...]:
    """Return the names of `signals_of(layers)`: the columns of `signals.csv` after `step`."""
    return tuple(signal.name for signal in signals_of(layers))

"""What describes a training of the field corpus, and what all halves draw with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

Half = Literal[
    "field_design",
    "field_test",
    "field_second_test",
    "field_third_test",
    "field_fourth_test",
    "field_fifth_test",
    "field_sixth_test",
    "field_seventh_test",
]
Task = Literal[
    "short",
    "long",
    "words",
    "homophones",
    "lines",
    "spaced",
    "spikes",
    "keywords",
    "commands",
    "letters",
    "pen",
    "cortex",
    "dialled",
    "plates",
    "bases",
    "signs",
]
Model = Literal[
    "gru",
    "conv",
    "conv_norm",
    "lstm",
    "attention",
    "bigru",
    "deep_conv",
    "deep_conv_norm",
    "conformer",
    "conv_gru",
    "crnn",
    "quartz",
    "stacked_gru",
    "post_norm",
    "tcn",
    "gated_conv",
    "elman",
    "transformer",
    "deep_speech",
    "patches",
    "tdnn",
    "ssm",
    "blstm",
    "vgg",
    "squeezed",
    "nearby",
]
Optimizer = Literal[
    "adamw",
    "sgd",
    "rmsprop",
    "radam",
    "adafactor",
    "nadam",
    "adagrad",
    "adadelta",
    "nesterov",
    "amsgrad",
    "lion",
    "adam",
    "noam_adam",
    "adamax",
    "novograd",
    "rms_momentum",
    "lamb",
    "adam_bf16",
    "muon",
    "prodigy",
    "schedule_free",
]
Schedule = Literal[
    "constant",
    "cosine",
    "linear",
    "cyclic",
    "restarts",
    "one_cycle",
    "stairs",
    "inverse_root",
    "late",
    "poly",
    "eden",
    "three_stages",
    "vanishing",
    "exponential",
    "triangles",
    "stable_then_decay",
    "epochs",
]
_T = TypeVar("_T")


@dataclass(frozen=True)
class FieldRecipe:
    """One training.

    Attributes:
        family: What is special about it.
        half: The half of the corpus.
        seed: Of the weights, the data and the noise.
        task: `short` utterances have 2 to 6 labels of 10 classes, `long` ones 6 to 12 of 24. `words` have 2 to 12
            of 40, in words; of `homophones` each class sounds like one other, and a guess is right half of the time.
            `lines` have 3 to 7 of 30, `spaced` ones a space between each two; `spikes` have 3 to 7 of 20, `keywords`
            1 to 3 of 8 in silence, and `commands` one of 8. `letters` have 2 to 15 of 26, some of them double. `pen`
            has 3 to 6 of 20, `cortex` 2 to 12 of 28, and `dialled` 3 to 7 of 10, some of them double. `plates` have
            3 to 7 of 26, `bases` 5 to 10 of 4, some of them double, and `signs` 2 to 5 of 22.
        noise: The standard deviation of the noise on the features.
        fresh_noise: Whether each reading of an utterance has new noise.
        warmup: The steps in which the rate rises from 0.
        reduction: Of the loss over the batch.
        zero_infinity: Whether an infinite loss of an utterance counts as 0.
        smoothing: The weight of a second loss, which pulls each frame towards the uniform distribution.
        dropout: The share of the encoder's outputs that is dropped in training.
        accumulate: The batches whose gradients make one step.
        average: The decay of the average of the weights with which the trainer validates; 0 if there is none.
        skips: Whether the trainer goes on without a batch for which the Monitor returns a verdict.
        half_gradients: Whether gradients pass through half precision, with a GradScaler.
        half_logits: Whether the logits pass through half precision, in which more than 65,504 is infinite.
        percent: Whether the Monitor is given error rates in percent.
        pretrained: Steps that are trained before, at a good rate and unwatched.
        fault: What is done to the training; None if nothing is.
        onset: The step at which the fault begins.
        span: The number of steps that the fault lasts or takes, if it has one.
        strength: The size of the fault, if it has one.
        stop_after: The number of steps after the first loss that is not finite.
    """

    family: str
    half: Half
    seed: int
    task: Task = "short"
    model: Model = "gru"
    units: int = 32
    batch: int = 8
    utterances: int = 400
    noise: float = 0.5
    fresh_noise: bool = True
    steps: int = 2000
    optimizer: Optimizer = "adamw"
    lr: float = 3e-3
    epsilon: float = 1e-8
    warmup: int = 20
    schedule: Schedule = "constant"
    clip: float | None = 10.0
    weight_decay: float = 1e-3
    reduction: Literal["per_utterance_sum", "per_label_mean", "batch_sum", "per_frame_mean"] = "per_label_mean"
    zero_infinity: bool = False
    smoothing: float = 0.0
    dropout: float = 0.0
    accumulate: int = 1
    average: float = 0.0
    skips: bool = False
    half_gradients: bool = False
    half_logits: bool = False
    percent: bool = False
    pretrained: int = 0
    fault: str | None = None
    onset: int = 0
    span: int = 0
    strength: float = 0.0
    stop_after: int = 15

    @property
    def name(self) -> str:
        """The recipe's name, unique in the corpus."""
        return f"{self.family}-{self.seed}"


Draw = np.random.Generator
Kind = Callable[[FieldRecipe, Draw], FieldRecipe]


def one_of(draw: Draw, *choices: _T) -> _T:
    """Draw one of the choices."""
    return choices[draw.integers(len(choices))]


def between(draw: Draw, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform."""
    return float(np.exp(draw.uniform(np.log(low), np.log(high))))


def late(r: FieldRecipe, draw: Draw) -> FieldRecipe:
    """Let the fault begin when the training has learned."""
    return replace(r, onset=int(draw.integers(900, 1300)), warmup=min(r.warmup, 50), schedule="constant")

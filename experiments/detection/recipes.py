"""The trainings of the detection corpus: healthy and faulty families, and which half of the corpus each is in.

A recipe describes a training, and never its result: a fault that does no harm does not make a training faulty.
Thresholds were set on `design`; `test` has other seeds, and families that `design` lacks. `first_test` was the test of
the first thresholds. After its results were known, it was used to set the second thresholds, and a new `test` with new
families replaced it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

DIGITS = Path(__file__).parents[3] / "shared" / "data" / "spoken-digits"  # recordings, beside the checkout

Half = Literal["design", "first_test", "test"]
_SEEDS: dict[Half, int] = {"design": 0, "first_test": 1000, "test": 2000}  # the first of each


@dataclass(frozen=True)
class Recipe:
    """One training. `fault` begins at step `onset`; 0 is the start."""

    family: str
    half: Half
    seed: int
    task: Literal["synthetic", "digits"] = "synthetic"
    layers: int = 2
    units: int = 32
    cell: Literal["gru", "lstm"] = "gru"
    batch: int = 16
    steps: int = 400
    optimizer: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    epsilon: float = 1e-8
    lr: float = 2e-3
    warmup: int = 20
    clip: float | None = 10.0
    weight_decay: float = 1e-3
    reduction: Literal["per_utterance_sum", "per_label_mean"] = "per_utterance_sum"
    noise: float = 0.4
    dropout: float = 0.0
    precision: Literal["fp32", "fp16", "pure_fp16"] = "fp32"
    fault: str | None = None
    onset: int = 0
    strength: float = 0.0
    cause: str | None = None  # the cause in a verdict that is right for the fault

    @property
    def name(self) -> str:
        """The recipe's name, unique in the corpus."""
        return f"{self.family}-{self.seed}"


def recipes() -> list[Recipe]:
    """Return all recipes, in a fixed order."""
    drawn = []
    for family, (kind, counts) in _FAMILIES.items():
        for half, count in counts.items():
            for i in range(count):
                seed = i + _SEEDS[half]
                rng = np.random.default_rng([seed, *family.encode()])
                drawn.append(kind(_base(family, half, seed, rng), rng))
    return sorted(drawn, key=lambda r: r.half)  # the half that is needed first is trained first


def _base(family: str, half: Half, seed: int, rng: np.random.Generator) -> Recipe:
    """Draw a healthy training: its size, its task and its settings."""
    size = rng.choice(4)
    layers, units = ((1, 32), (1, 48), (2, 32), (2, 40))[size]
    return Recipe(
        family,
        half,
        seed,
        task="digits" if rng.random() < 0.25 else "synthetic",
        layers=layers,
        units=units,
        batch=int(rng.choice([6, 12])),
        lr=float(rng.choice([3e-3, 4e-3, 6e-3])),
        noise=float(rng.choice([0.1, 0.4])),
        warmup=int(rng.choice([10, 20, 50])),
    )


def _late(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(r, onset=int(rng.integers(100, 200)), steps=400)


# Healthy families.


def _adam(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(r, epsilon=float(rng.choice([1e-8, 1e-6, 1e-4])))


def _official(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(r, epsilon=0.1, lr=float(rng.choice([1e-2, 2e-2, 3e-2])), steps=500)


def _momentum(r: Recipe, rng: np.random.Generator, step: float) -> Recipe:
    """Use Adam with epsilon 0.1 as momentum SGD. `step` is its learning rate for the gradient of a sum over labels."""
    labels = 14.1 if r.task == "digits" else 5.4
    if rng.random() < 0.5:
        return replace(r, epsilon=0.1, lr=0.1 * step * labels, reduction="per_label_mean")
    return replace(r, epsilon=0.1, lr=0.1 * step)


def _long_plateau(r: Recipe, rng: np.random.Generator) -> Recipe:
    """Small steps and a long warm-up: a long plateau before it learns."""
    step = float(10 ** rng.uniform(-1.9, -1.5))
    return replace(_momentum(r, rng, step), warmup=int(rng.choice([50, 200])), steps=1000)


def _per_label(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(r, reduction="per_label_mean", epsilon=float(rng.choice([1e-8, 1e-5])))


def _noisy(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(r, batch=3, noise=1.0, steps=600)


def _spike(r: Recipe, rng: np.random.Generator) -> Recipe:
    """One outlier batch, which does no harm because of the clip and Adam."""
    return replace(_late(r, rng), fault="bad_batch", strength=float(rng.choice([5, 20])))


def _rate_blip(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(_late(r, rng), fault="rate_blip", strength=float(rng.choice([4, 8])))


def _unclipped(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(r, clip=None, lr=min(r.lr, 3e-3))


def _fast(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(r, lr=8e-3, warmup=1)


def _half(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(r, precision="fp16")


def _sgd(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(r, optimizer="sgd", lr=float(rng.choice([0.01, 0.03])), clip=5.0, steps=700)


def _lstm(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(r, cell="lstm", lr=5e-3, steps=600)


def _dropout(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(r, dropout=0.4, steps=600, lr=5e-3)


def _other_room(r: Recipe, rng: np.random.Generator) -> Recipe:
    """The recordings change in mid-training: the loss jumps, and falls again."""
    return replace(_late(r, rng), fault="channels_swapped", steps=800)


def _cyclic(r: Recipe, rng: np.random.Generator) -> Recipe:
    """A learning rate that goes up and down, threefold, all the time."""
    return replace(r, fault="rate_cycles", steps=500)


def _rmsprop(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(r, optimizer="rmsprop", lr=1e-3, steps=500)


def _label_noise(r: Recipe, rng: np.random.Generator) -> Recipe:
    """One label in twenty is wrong."""
    return replace(r, fault="label_noise", steps=500)


# Faulty families.


def _rate_too_high(r: Recipe, rng: np.random.Generator) -> Recipe:
    """The rate is too high from the start: the warm-up leads to one that is too high for the curvature."""
    if rng.random() < 0.5:
        made = replace(r, epsilon=0.1, lr=float(10 ** rng.uniform(0.7, 2.5)))
    else:
        made = replace(r, lr=float(10 ** rng.uniform(-0.7, 0.7)))
    clip = None if rng.random() < 0.7 else 10.0
    return replace(made, clip=clip, warmup=int(rng.choice([50, 150])), fault="rate", cause="rate_too_high")


def _rate_raised(r: Recipe, rng: np.random.Generator) -> Recipe:
    strength = float(10 ** rng.uniform(1.3, 3))
    clip = None if rng.random() < 0.7 else 10.0
    return replace(_late(r, rng), clip=clip, fault="rate", strength=strength, cause="rate_too_high")


def _bad_batch(r: Recipe, rng: np.random.Generator) -> Recipe:
    """One batch has far too much weight. With momentum and without a clip, it moves the weights far away."""
    made = replace(_late(r, rng), epsilon=0.1, lr=5e-3, clip=None, fault="heavy_batch", cause="bad_batch")
    return replace(made, strength=float(10 ** rng.uniform(3, 5)))


def _weight_drift(r: Recipe, rng: np.random.Generator) -> Recipe:
    strength = float(rng.choice([0.01, 0.02, 0.04]))
    return replace(_late(r, rng), fault="weight_drift", strength=strength, cause="drift", clip=None)


def _nan_gradient(r: Recipe, rng: np.random.Generator) -> Recipe:
    onset = 0 if rng.random() < 0.2 else int(rng.integers(1, 200))
    return replace(r, fault="nan_gradient", onset=onset, cause="gradient")


def _nan_input(r: Recipe, rng: np.random.Generator) -> Recipe:
    onset = 0 if rng.random() < 0.3 else int(rng.integers(1, 200))
    return replace(r, fault="nan_input", onset=onset, cause="non_finite_input")


def _infeasible(r: Recipe, rng: np.random.Generator) -> Recipe:
    onset = 0 if rng.random() < 0.3 else int(rng.integers(1, 200))
    return replace(r, fault="infeasible", onset=onset, cause="infeasible_target")


def _overflow(r: Recipe, rng: np.random.Generator) -> Recipe:
    """A loss scale that grows and is never reduced."""
    return replace(r, precision="fp16", fault="scale_grows", onset=int(rng.integers(1, 200)), cause="precision")


def _clip_before_unscale(r: Recipe, rng: np.random.Generator) -> Recipe:
    made = replace(r, precision="fp16", fault="clip_before_unscale", cause="precision", clip=1.0, steps=600)
    return replace(made, epsilon=float(rng.choice([1e-3, 0.1])), lr=5e-3)


def _step_too_small(r: Recipe, rng: np.random.Generator) -> Recipe:
    """The step is too small: epsilon is too large for the gradients, or the rate is too small."""
    if rng.random() < 0.6:
        made = _momentum(r, rng, float(10 ** rng.uniform(-5, -4)))
    else:
        made = replace(r, lr=float(10 ** rng.uniform(-6.5, -5)))
    return replace(made, steps=800, fault="small_step", cause="step_too_small")


def _slow(r: Recipe, rng: np.random.Generator) -> Recipe:
    if rng.random() < 0.5:
        made = replace(r, lr=float(10 ** rng.uniform(-4.2, -3.5)))
    else:
        made = _momentum(r, rng, float(10 ** rng.uniform(-2.7, -2.2)))
    return replace(made, steps=600, fault="small_step", cause="step_too_small")


def _early_end(r: Recipe, rng: np.random.Generator) -> Recipe:
    """A learning rate that falls to a thousandth when the decoder has just begun to output only blank."""
    step = float(10 ** rng.uniform(-1.7, -1.3))
    made = replace(_momentum(r, rng, step), warmup=10, fault="rate_ends", strength=1e-3)
    return replace(made, onset=int(rng.integers(30, 60)), cause="step_too_small", steps=800)


def _decay(r: Recipe, rng: np.random.Generator) -> Recipe:
    """A weight decay that destroys what was learned."""
    made = _late(r, rng) if rng.random() < 0.6 else r
    strength = float(10 ** rng.uniform(1.0, 2.0))
    cause = "relapse" if made.onset else "decay"
    return replace(made, fault="decay", strength=strength, cause=cause, steps=600)


def _shuffled_labels(r: Recipe, rng: np.random.Generator) -> Recipe:
    made = _late(r, rng) if rng.random() < 0.6 else r
    return replace(made, fault="shuffled_labels", cause="relapse" if made.onset else "no_information", steps=600)


def _few_labels(r: Recipe, rng: np.random.Generator) -> Recipe:
    """Labels that a wrong table has mapped to two classes."""
    made = _late(r, rng) if rng.random() < 0.5 else r
    return replace(made, fault="few_labels", cause="labels", steps=500)


def _sign_flip(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(_late(r, rng), fault="sign_flip", cause="drift", clip=None)


def _dead_input(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(_late(r, rng), fault="dead_input", cause="relapse", steps=600)


def _epsilon_switch(r: Recipe, rng: np.random.Generator) -> Recipe:
    """A momentum-SGD rate that was tuned for epsilon 0.1 meets an epsilon of 1e-8."""
    made = replace(_late(r, rng), epsilon=0.1, lr=0.03, clip=None)
    return replace(made, fault="epsilon_switch", cause="rate_too_high")


def _pure_half(r: Recipe, rng: np.random.Generator) -> Recipe:
    """Weights in half precision, in which Adam's epsilon is 0."""
    return replace(r, precision="pure_fp16", fault="pure_fp16", cause="precision")


def _sgd_rate(r: Recipe, rng: np.random.Generator) -> Recipe:
    made = replace(r, optimizer="sgd", lr=float(10 ** rng.uniform(-0.3, 1)), clip=None, warmup=100)
    return replace(made, fault="rate", cause="rate_too_high")


def _inf_input(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(r, fault="inf_input", onset=int(rng.integers(0, 200)), cause="non_finite_input")


def _not_zeroed(r: Recipe, rng: np.random.Generator) -> Recipe:
    """Gradients that add up from some step on, since they are not set to zero."""
    made = replace(_late(r, rng), epsilon=0.1, lr=0.02, clip=None)
    return replace(made, fault="not_zeroed", cause="drift")


def _rate_climbs(r: Recipe, rng: np.random.Generator) -> Recipe:
    """A search for the learning rate that was never switched off."""
    made = replace(r, fault="rate_climbs", strength=float(rng.choice([0.02, 0.04])), cause="rate_too_high", clip=None)
    return replace(made, steps=500)


def _gradient_lost(r: Recipe, rng: np.random.Generator) -> Recipe:
    """The weight of the loss becomes zero when the decoder has just begun to output only blank."""
    step = float(10 ** rng.uniform(-1.7, -1.3))
    made = replace(_momentum(r, rng, step), warmup=10, fault="gradient_lost", onset=int(rng.integers(30, 60)))
    return replace(made, cause="step_too_small", steps=800)


def _gain_lost(r: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(_late(r, rng), fault="gain_lost", cause="relapse", steps=600)


def _bit_flip(r: Recipe, rng: np.random.Generator) -> Recipe:
    """One weight becomes infinite."""
    return replace(r, fault="bit_flip", onset=int(rng.integers(1, 200)), cause="loss")


_Kind = Callable[[Recipe, np.random.Generator], Recipe]
_FAMILIES: dict[str, tuple[_Kind, dict[Half, int]]] = {
    "adam": (_adam, {"design": 9, "first_test": 9, "test": 9}),
    "official": (_official, {"design": 6, "first_test": 6, "test": 6}),
    "long_plateau": (_long_plateau, {"design": 11, "first_test": 11, "test": 11}),
    "per_label": (_per_label, {"design": 6, "first_test": 6, "test": 6}),
    "noisy": (_noisy, {"design": 5, "first_test": 5, "test": 5}),
    "spike": (_spike, {"design": 8, "first_test": 8, "test": 8}),
    "rate_blip": (_rate_blip, {"design": 5, "first_test": 5, "test": 5}),
    "unclipped": (_unclipped, {"design": 5, "first_test": 5, "test": 5}),
    "fast": (_fast, {"design": 5, "first_test": 5, "test": 5}),
    "half": (_half, {"design": 3, "first_test": 3, "test": 3}),
    "sgd": (_sgd, {"first_test": 6, "test": 6}),
    "lstm": (_lstm, {"first_test": 5, "test": 5}),
    "dropout": (_dropout, {"first_test": 5, "test": 5}),
    "other_room": (_other_room, {"first_test": 6, "test": 6}),
    "rate_too_high": (_rate_too_high, {"design": 10, "first_test": 10, "test": 10}),
    "rate_raised": (_rate_raised, {"design": 10, "first_test": 10, "test": 10}),
    "bad_batch": (_bad_batch, {"design": 8, "first_test": 8, "test": 8}),
    "weight_drift": (_weight_drift, {"design": 6, "first_test": 6, "test": 6}),
    "nan_gradient": (_nan_gradient, {"design": 5, "first_test": 5, "test": 5}),
    "nan_input": (_nan_input, {"design": 5, "first_test": 5, "test": 5}),
    "infeasible": (_infeasible, {"design": 5, "first_test": 5, "test": 5}),
    "overflow": (_overflow, {"design": 4, "first_test": 4, "test": 4}),
    "clip_before_unscale": (_clip_before_unscale, {"design": 4, "first_test": 4, "test": 4}),
    "step_too_small": (_step_too_small, {"design": 8, "first_test": 8, "test": 8}),
    "early_end": (_early_end, {"design": 7, "first_test": 7, "test": 7}),
    "slow": (_slow, {"design": 6, "first_test": 6, "test": 6}),
    "decay": (_decay, {"design": 6, "first_test": 6, "test": 6}),
    "shuffled_labels": (_shuffled_labels, {"design": 5, "first_test": 5, "test": 5}),
    "few_labels": (_few_labels, {"design": 6, "first_test": 6, "test": 6}),
    "sign_flip": (_sign_flip, {"first_test": 5, "test": 5}),
    "dead_input": (_dead_input, {"first_test": 5, "test": 5}),
    "epsilon_switch": (_epsilon_switch, {"first_test": 4, "test": 4}),
    "pure_half": (_pure_half, {"first_test": 3, "test": 3}),
    "sgd_rate": (_sgd_rate, {"first_test": 4, "test": 4}),
    "cyclic": (_cyclic, {"test": 6}),
    "rmsprop": (_rmsprop, {"test": 5}),
    "label_noise": (_label_noise, {"test": 5}),
    "not_zeroed": (_not_zeroed, {"test": 5}),
    "rate_climbs": (_rate_climbs, {"test": 5}),
    "gradient_lost": (_gradient_lost, {"test": 5}),
    "gain_lost": (_gain_lost, {"test": 5}),
    "bit_flip": (_bit_flip, {"test": 4}),
    "inf_input": (_inf_input, {"first_test": 4, "test": 4}),
}

"""The corpus' trainings whose fault is in the settings, as configurations of `stability.train`.

The rule: a recipe of `experiments.detection.recipes` is a case if its fault is a value that `stability.train` has a
setting for, from the first step on. So faults of data, labels and program are none, nor are those that begin late, nor
optimizers that this project's trainer lacks. Two faults begin late in the corpus and from the start here: the rate
that ends too early is a cosine that ends then, and the epsilon of 1e-8 that meets a rate for 0.1 meets it at once.

`design` and `test` are the corpus' halves of these names. `first_test` is not used.
"""

from dataclasses import dataclass

from experiments.detection.recipes import DIGITS, Half, Recipe, recipes

_FAMILIES = ("rate_too_high", "step_too_small", "slow", "early_end", "decay", "clip_before_unscale", "epsilon_switch")
_LATE_TOO = ("early_end", "epsilon_switch")  # families that begin late in the corpus, and can begin here
_SYNTHETIC = {
    **{"seed": 7, "days": 4, "features": 32, "train_utterances": 80, "val_utterances": 16, "words": 1},
    **{"noise": 0.4, "drift": 0.1},
}  # as in the corpus


@dataclass(frozen=True)
class Case:
    """A faulty training.

    Attributes:
        recipe: The corpus' recipe of it.
        overrides: The settings of `stability.train` that make it, without the seed.
    """

    recipe: Recipe
    overrides: tuple[str, ...]


def cases(half: Half) -> list[Case]:
    """Return the cases of a half: the first of each family, then the second, and so on.

    Those of spoken digits are there where the recordings are.
    """
    chosen = sorted((r for r in recipes() if r.half == half and _is_case(r)), key=lambda r: r.seed)
    return [Case(r, _overrides(r)) for r in chosen]


def _is_case(r: Recipe) -> bool:
    at_once = r.onset == 0 or r.family in _LATE_TOO
    return r.family in _FAMILIES and at_once and (r.task == "synthetic" or DIGITS.exists())


def _overrides(r: Recipe) -> tuple[str, ...]:
    ends, lowest = (r.onset, r.strength * r.lr) if r.family == "early_end" else (8000, 0.02 * r.lr)
    values = {
        "optimizer.epsilon": 1e-8 if r.family == "epsilon_switch" else r.epsilon,
        "optimizer.weight_decay": r.strength if r.family == "decay" else r.weight_decay,
        "optimizer.clip_norm": "null" if r.clip is None else r.clip,
        "schedule.lr_max": r.lr,
        "schedule.lr_min": lowest,
        "schedule.warmup_steps": r.warmup,
        "schedule.decay_steps": ends,
        "loss.reduction": r.reduction,
        "precision.dtype": r.precision,
        "precision.clip_before_unscale": str(r.family == "clip_before_unscale").lower(),
        "batch.size": r.batch,
        "batch.days": 3,
        "aug.white_noise_std": r.noise,
        "aug.constant_offset_std": 0,
        "aug.max_cut": 0,
        "model.layers": r.layers,
        "model.units": r.units,
        "model.patch_stride": 5,
        "model.input_dropout": r.dropout,
        "model.rnn_dropout": r.dropout,
        "model.time_scale": 1,
        "steps": r.steps,
        "validate_every": r.steps // 8,
        "checkpoint_every": r.steps,
    }
    if r.task == "digits":
        data: tuple[str, ...] = ("data=t15", f"data.path={DIGITS}")
    else:
        data = tuple(f"data.synthetic.{name}={value}" for name, value in _SYNTHETIC.items())
    return *data, *(f"{name}={_text(value)}" for name, value in values.items())


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"

"""The schema of a configuration: one dataclass for each group of `conf/`, each field with its type and its bounds.

`conf/` explains the fields, next to their values; each docstring says in which file. A field that has a default was
added later: at its default it is not part of a trial's name, so that older trials keep their names.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from stability.core.errors import StabilityError
from stability.core.passwords import refuse_password
from stability.diagnosis.verdict import FATAL, Fault

_LARGEST = 3e38  # float32 overflows at 3.4e38


@dataclass(frozen=True)
class _Bound:
    """The numbers that a field accepts."""

    text: str
    accepts: Callable[[float], bool]  # False for NaN


def _bounded(text: str, accepts: Callable[[float], bool]) -> dict[str, _Bound]:
    return {"bound": _Bound(text, accepts)}


def _at_least(least: float) -> dict[str, _Bound]:
    return _bounded(f"{least} or more", lambda value: value >= least)


def _positive() -> dict[str, _Bound]:
    return _bounded("above 0", lambda value: value > 0)


def _fraction() -> dict[str, _Bound]:
    return _bounded("at least 0 and below 1", lambda value: 0 <= value < 1)


def _between(least: float, most: float) -> dict[str, _Bound]:
    return _bounded(f"from {least} to {most}", lambda value: least <= value <= most)


@dataclass
class Optimizer:
    """AdamW, and the gradient clipping before it: see `conf/optimizer/official.yaml`."""

    epsilon: float = field(metadata=_at_least(0))
    beta1: float = field(metadata=_fraction())
    beta2: float = field(metadata=_fraction())
    weight_decay: float = field(metadata=_at_least(0))
    weight_decay_day: float = field(metadata=_at_least(0))
    clip_norm: float | None = field(metadata=_positive())
    fused: bool


@dataclass
class Schedule:
    """The learning rates, and the steps at which they change: see `conf/schedule/official.yaml`."""

    lr_max: float = field(metadata=_at_least(0))
    lr_min: float = field(metadata=_at_least(0))
    lr_max_day: float = field(metadata=_at_least(0))
    lr_min_day: float = field(metadata=_at_least(0))
    warmup_steps: int = field(metadata=_at_least(0))
    decay_steps: int = field(metadata=_at_least(0))


@dataclass
class Augmentation:
    """Noise, cut and smoothing of the features: see `conf/aug/strong.yaml`."""

    white_noise_std: float = field(metadata=_at_least(0))
    constant_offset_std: float = field(metadata=_at_least(0))
    max_cut: int = field(metadata=_at_least(0))
    smooth_std: float = field(metadata=_at_least(0))


@dataclass
class Batch:
    """Utterances and days in a training batch: see `conf/batch/official.yaml`."""

    size: int = field(metadata=_at_least(1))
    days: int = field(metadata=_at_least(1))


@dataclass
class Loss:
    """How the CTC loss of an utterance is reduced over its labels: see `conf/loss/`."""

    reduction: Literal["per_utterance_sum", "per_label_mean"]


@dataclass
class Precision:
    """The dtype of the forward pass, and fp16's loss scaling: see `conf/precision/auto.yaml`."""

    dtype: Literal["auto", "fp32", "bf16", "fp16"]
    initial_loss_scale: float = field(metadata=_at_least(1))
    clip_before_unscale: bool


@dataclass
class Model:
    """The decoder's size, and the time scale that goes with it: see `conf/model/official.yaml`."""

    layers: int = field(metadata=_at_least(1))
    units: int = field(metadata=_at_least(1))
    patch_size: int = field(metadata=_at_least(1))
    patch_stride: int = field(metadata=_at_least(1))
    input_dropout: float = field(metadata=_fraction())
    rnn_dropout: float = field(metadata=_fraction())
    time_scale: float = field(metadata=_positive())


@dataclass
class Synthetic:
    """A synthetic data set; the same settings give the same bytes: see `conf/data/synthetic.yaml`."""

    seed: int = field(metadata=_at_least(0))
    days: int = field(metadata=_between(1, 99))
    features: int = field(metadata=_at_least(2))
    train_utterances: int = field(metadata=_at_least(1))
    val_utterances: int = field(metadata=_at_least(1))
    words: int = field(metadata=_between(1, 40))  # longer sentences could be too long for the layout
    noise: float = field(metadata=_between(0, 100))
    drift: float = field(metadata=_between(0, 1))
    bins_per_phoneme: float = field(default=9.0, metadata=_between(5, 100))
    recordings: int = field(default=0, metadata=_between(0, 100))


@dataclass
class Data:
    """Where the utterances come from, and what to do with bad ones: see `conf/data/t15.yaml`."""

    path: str | None
    sessions: list[str] | None
    on_bad_utterance: Literal["error", "exclude"]
    synthetic: Synthetic | None


@dataclass
class Diagnosis:
    """Which faults end a trial before its last step: see `conf/diagnosis/default.yaml`."""

    stop_on: list[Fault]


@dataclass
class Tracking:
    """Where trials and studies are sent: see `conf/tracking/mlflow.yaml`."""

    backend: Literal["mlflow", "none", "tensorboard", "wandb"]
    uri: str | None
    experiment: str
    tags: dict[str, str] = field(default_factory=dict)
    note: str | None = None
    system_metrics: bool = False


@dataclass
class Trainer:
    """Who trains: this project's decoder, or a command: see `conf/trainer/`."""

    kind: Literal["decoder", "command"] = "decoder"
    command: str | None = None
    config: str | None = None
    log: str | None = None
    names: dict[str, str] = field(default_factory=dict)
    resume: str | None = None
    steps: int | None = field(default=None, metadata=_at_least(1))
    limit: float | None = field(default=None, metadata=_positive())
    grace: float = field(default=30.0, metadata=_at_least(0))


@dataclass
class Config:
    """The configuration of one trial: see `conf/config.yaml`."""

    optimizer: Optimizer
    schedule: Schedule
    aug: Augmentation
    batch: Batch
    loss: Loss
    precision: Precision
    model: Model
    data: Data
    diagnosis: Diagnosis
    tracking: Tracking
    seed: int
    steps: int = field(metadata=_at_least(1))
    validate_every: int = field(metadata=_at_least(1))
    checkpoint_every: int = field(metadata=_at_least(1))
    device: str
    init_from: str | None
    study: str
    outputs: str
    fresh: bool
    trainer: Trainer = field(default_factory=Trainer)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def runs_command(self) -> bool:
        """Whether a command trains the trial, and not this project's decoder."""
        return self.trainer.kind == "command"

    @property
    def budget(self) -> int | None:
        """The number of steps that the trial is to make; None if only the command knows it."""
        return self.trainer.steps if self.runs_command else self.steps


@dataclass
class Sweep:
    """Settings of a whole sweep, and of none of its trials: see `conf/config.yaml`."""

    claims: str | None
    until: str | None
    dry_run: bool


@dataclass(kw_only=True)
class Command(Config):
    """Everything that a command line can set, except Hydra's own settings."""

    sweep: Sweep


def check(config: Config) -> None:
    """Check what types do not express: bounds, and settings that contradict each other.

    Args:
        config: A configuration whose fields have the right types.

    Raises:
        StabilityError: A value is out of bounds, or two contradict each other. The message says how to correct it.
    """
    check_bounds(config)
    refuse_password("tracking.uri", config.tracking.uri or "")
    if config.runs_command:
        return
    if config.settings or config.trainer.command:
        given = "trainer.command" if config.trainer.command else f"settings.{next(iter(config.settings))}"
        raise StabilityError(f"{given} is for a program of yours: add trainer=command.")
    if missing := {*FATAL} - {*config.diagnosis.stop_on}:
        raise StabilityError(
            f"diagnosis.stop_on={config.diagnosis.stop_on}: {', '.join(sorted(missing))} must be in the list, because "
            "a trial whose numbers are not finite cannot be trained further. Give "
            "diagnosis.stop_on=[non_finite,bad_data], and add what else should end the trial."
        )
    if config.batch.size < config.batch.days:
        raise StabilityError(
            f"batch.size={config.batch.size} is smaller than batch.days={config.batch.days}: "
            "each day needs at least one utterance in the batch."
        )


def check_bounds(settings: Any, prefix: str = "") -> None:
    """Check that each number is within its field's bounds.

    Args:
        settings: One of the dataclasses above.
        prefix: What precedes its fields' names in a configuration, for the message.

    Raises:
        StabilityError: A value is out of bounds.
    """
    for name, value, bound in _values(settings, prefix):
        if bound is not None and value is not None and not bound.accepts(value):
            raise StabilityError(f"{name}={value}: it has to be {bound.text}.")
        if isinstance(value, float) and _LARGEST < abs(value) < math.inf:
            raise StabilityError(f"{name}={value}: float32 holds numbers of up to {_LARGEST:g}.")


def _values(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, _Bound | None]]:
    """Each value with its dotted name and its bound."""
    for f in fields(settings):
        value = getattr(settings, f.name)
        if is_dataclass(value):
            yield from _values(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value, f.metadata.get("bound")

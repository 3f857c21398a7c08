"""The configuration of a trial: the typed schema of `conf/`, its resolvers, and a trial's name.

A value with a default in the schema came later. At its default it is no part of a name, so that what was made before it
keeps its own.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from stability.diagnosis.verdict import FATAL, Fault
from stability.errors import StabilityError

CHECKOUT = Path(__file__).parent.parent
_LARGEST = 3e38  # which float32 just holds


@dataclass
class Optimizer:
    """AdamW and the clip before it; the meaning of each value stands in `conf/optimizer/official.yaml`."""

    epsilon: float
    beta1: float
    beta2: float
    weight_decay: float
    weight_decay_day: float
    clip_norm: float | None
    fused: bool


@dataclass
class Schedule:
    """Learning rates and the steps at which they change."""

    lr_max: float
    lr_min: float
    lr_max_day: float
    lr_min_day: float
    warmup_steps: int
    decay_steps: int


@dataclass
class Augmentation:
    """Noise in units of the features' standard deviation, cut and smoothing in bins."""

    white_noise_std: float
    constant_offset_std: float
    max_cut: int
    smooth_std: float


@dataclass
class Batch:
    """Trials and days in a training batch."""

    size: int
    days: int


@dataclass
class Loss:
    """How a trial's CTC loss is reduced over its labels."""

    reduction: Literal["per_trial_sum", "per_label_mean"]


@dataclass
class Precision:
    """The dtype of the forward pass, fp16's first loss scale, and a fault to experiment with."""

    dtype: Literal["auto", "fp32", "bf16", "fp16"]
    initial_loss_scale: float
    clip_before_unscale: bool


@dataclass
class Model:
    """The decoder's size, and the factor on every length in steps that goes with it."""

    layers: int
    units: int
    patch_size: int
    patch_stride: int
    input_dropout: float
    rnn_dropout: float
    time_scale: float


@dataclass
class Synthetic:
    """Settings of the made-up data set; the same settings give the same bytes."""

    seed: int
    days: int
    features: int
    train_trials: int
    val_trials: int
    words: int
    noise: float
    drift: float
    bins_per_phoneme: float = 9.0
    recordings: int = 0


@dataclass
class Data:
    """Where the trials come from, and what to do with bad ones."""

    path: str | None
    sessions: list[str] | None
    on_bad_trial: Literal["error", "exclude"]
    synthetic: Synthetic | None


@dataclass
class Diagnosis:
    """What ends a trial before its budget does."""

    stop_on: list[Fault]


@dataclass
class Tracking:
    """Where runs are compared."""

    backend: Literal["mlflow", "none"]
    uri: str | None
    experiment: str


@dataclass
class Config:
    """One trial."""

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
    steps: int
    validate_every: int
    checkpoint_every: int
    device: str
    init_from: str | None
    study: str
    outputs: str
    fresh: bool


@dataclass
class Sweep:
    """What is said of a whole sweep; no part of any of its trials."""

    claims: str | None
    dry_run: bool


@dataclass
class Command(Config):
    """All that a command line can say."""

    sweep: Sweep


def register() -> None:
    """Make Hydra know the schema and the resolvers; call it before Hydra composes."""
    ConfigStore.instance().store(name="schema", node=Command, replace=True)
    OmegaConf.register_resolver("scaled", _scaled, replace=True)
    OmegaConf.register_resolver("trial_name", _trial_name, replace=True)


def folder() -> Path:
    """The configuration's folder: in the checkout, or beside the package in an installed wheel."""
    beside, inside = CHECKOUT / "conf", Path(__file__).parent / "conf"
    return beside if (CHECKOUT / "pyproject.toml").is_file() and beside.is_dir() else inside


def resolve(cfg: DictConfig) -> Config:
    """The typed configuration of a trial, every interpolation resolved."""
    names = [field.name for field in fields(Config)]
    if unknown := cfg.keys() - {*names, "hydra", "sweep"}:
        raise StabilityError(
            f"There is no {', '.join(map(str, unknown))} in the configuration; there are {', '.join(names)}."
        )
    typed = cfg if OmegaConf.get_type(cfg) is Command else _typed(OmegaConf.masked_copy(cfg, names))
    try:
        values: dict[str, Any] = {name: typed[name] for name in names}
        values |= {name: OmegaConf.to_object(v) for name, v in values.items() if OmegaConf.is_config(v)}
    except MissingMandatoryValue:
        missing = OmegaConf.missing_keys(OmegaConf.masked_copy(typed, names))
        raise StabilityError(f"{', '.join(missing)} must be given, as in {min(missing)}=VALUE.") from None
    config = Config(**values)
    config.diagnosis.stop_on = sorted({*config.diagnosis.stop_on})  # one list, however it was written: one trial
    _check(config)
    return config


def _typed(cfg: DictConfig) -> DictConfig:
    """What was read from a file, under the schema that Hydra composes by."""
    typed = OmegaConf.merge(OmegaConf.structured(Config), cfg)
    assert isinstance(typed, DictConfig)
    return typed


def explain(error: BaseException) -> str:
    """Hydra's message without its internals, and the names that there are where one was wrong."""
    text = "\n".join(str(e).strip() for e in (error, error.__cause__) if e is not None)
    if "hydra.mode changed" in text:
        return "An experiment is a sweep: give --multirun with it. One trial of it: hydra.mode=RUN."
    text = re.sub(r"\w+ raised while resolving interpolation: *", "", text)
    internals = (
        r"\nTo append to your config use .*",
        r"\n *(full_key|reference_type|object_type)[:=].*",
        r"\nConfig search path:(\n|.)*",
    )
    text = re.sub("|".join(internals), "", text)
    owner = re.search(r"not in '(\w+)'", text)
    if owner and owner[1] in globals():  # ours, and not Hydra's
        text += f"\nThere are: {', '.join(f.name for f in fields(globals()[owner[1]]))}."
    return text


def flatten(config: Config) -> dict[str, Any]:
    """Every value under its dotted name, as it is overridden on the command line."""
    return dotted(asdict(config))


def without_defaults(settings: Any) -> dict[str, Any]:
    """The values that make a name: all but those at a default of the schema. Nested ones are dictionaries too."""
    values = {f.name: (getattr(settings, f.name), f.default) for f in fields(settings)}
    return {
        name: without_defaults(value) if is_dataclass(value) else value
        for name, (value, default) in values.items()
        if value != default
    }


def dotted(value: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested dictionaries under dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for name in value for k, v in dotted(value[name], f"{prefix}.{name}" if prefix else str(name)).items()}


def short_name(name: str) -> str:
    """What tables, figures and MLflow call a value of that dotted name: a usual name, or the end that is its own."""
    end = name.rpartition(".")[2]
    return USUAL.get(name) or (end if _ends()[end] == 1 and end not in USUAL.values() else name)


def trial_name(config: Config) -> str:
    """What the trial is: the usual factors in clear, and a hash over all that can change its result."""
    matters = {k: v for k, v in dotted(without_defaults(config)).items() if k.split(".")[0] not in CHANGES_NO_RESULT}
    digest = hashlib.sha256(json.dumps(matters, sort_keys=True).encode()).hexdigest()[:8]
    clear = {
        "eps": config.optimizer.epsilon,
        "lr": config.schedule.lr_max,
        "noise": config.aug.white_noise_std,
        "batch": config.batch.size,
        "seed": config.seed,
    }
    return "-".join([*(f"{k}{v:g}" for k, v in clear.items()), digest])


def _check(config: Config) -> None:
    """Refuse numbers that no trial can have; the types were checked by Hydra."""
    at_least = {
        "steps": 1,
        "validate_every": 1,
        "checkpoint_every": 1,
        "batch.size": 1,
        "batch.days": 1,
        "schedule.lr_max": 0,
        "schedule.lr_min": 0,
        "schedule.lr_max_day": 0,
        "schedule.lr_min_day": 0,
        "schedule.warmup_steps": 0,
        "schedule.decay_steps": 0,
        "model.layers": 1,
        "model.units": 1,
        "model.patch_size": 1,
        "model.patch_stride": 1,
        "optimizer.epsilon": 0,
        "optimizer.weight_decay": 0,
        "optimizer.weight_decay_day": 0,
        "aug.white_noise_std": 0,
        "aug.constant_offset_std": 0,
        "aug.max_cut": 0,
        "aug.smooth_std": 0,
        "precision.initial_loss_scale": 1,
    }
    values = flatten(config)
    for name, least in at_least.items():
        if not values[name] >= least:
            raise StabilityError(f"{name}={values[name]}: it has to be {least} or more.")
    for name in ("model.input_dropout", "model.rnn_dropout", "optimizer.beta1", "optimizer.beta2"):
        if not 0 <= values[name] < 1:
            raise StabilityError(f"{name}={values[name]}: it has to be at least 0 and below 1.")
    for name in ("model.time_scale", "optimizer.clip_norm"):
        if values[name] is not None and not values[name] > 0:
            raise StabilityError(f"{name}={values[name]}: it has to be above 0.")
    for name, value in values.items():
        if isinstance(value, float) and _LARGEST < abs(value) < math.inf:
            raise StabilityError(f"{name}={value}: float32 holds numbers of up to {_LARGEST:g}.")
    if missing := {*FATAL} - {*config.diagnosis.stop_on}:
        raise StabilityError(
            f"diagnosis.stop_on={config.diagnosis.stop_on}: {', '.join(sorted(missing))} cannot be left out, since a "
            "trial that is not finite is never stepped again. Give diagnosis.stop_on=[non_finite,bad_data], and with "
            "them what else should end it."
        )
    if config.batch.size < config.batch.days:
        raise StabilityError(
            f"batch.size={config.batch.size} cannot be shared out over batch.days={config.batch.days}."
        )


@cache
def _ends() -> Counter[str]:
    """How many values of the schema have each end of a dotted name."""

    def walk(kind: Any) -> Iterator[str]:
        for name, hint in get_type_hints(kind).items():
            inner = next((t for t in (hint, *get_args(hint)) if is_dataclass(t)), None)
            yield from walk(inner) if inner else (name,)

    return Counter(walk(Config))


USUAL = {
    "optimizer.epsilon": "epsilon",
    "schedule.lr_max": "lr",
    "aug.white_noise_std": "noise",
    "aug.constant_offset_std": "offset",
    "batch.size": "batch",
    "loss.reduction": "loss",
    "precision.dtype": "precision",
    "seed": "seed",
}

CHANGES_NO_RESULT = {"tracking", "study", "outputs", "fresh", "validate_every", "checkpoint_every"}


def _scaled(steps: int, *, _root_: DictConfig) -> int:
    """A length in steps of the official run, at the model's time scale."""
    scale: float = _root_.model.time_scale
    return max(1, round(steps * scale))


def _trial_name(*, _root_: DictConfig) -> str:
    return trial_name(resolve(_root_))

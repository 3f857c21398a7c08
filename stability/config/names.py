"""Names: dotted and short names of settings, and the name of a trial."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from stability.config.schema import Command, Config

SHORT_NAMES = {
    "optimizer.epsilon": "epsilon",
    "schedule.lr_max": "lr",
    "aug.white_noise_std": "noise",
    "aug.constant_offset_std": "offset",
    "batch.size": "batch",
    "loss.reduction": "loss",
    "precision.dtype": "precision",
    "seed": "seed",
}  # of the factors that are varied most

SETTINGS = "settings."  # what precedes the names of a command's own settings

_ALIASES = {"batch_size": "batch.size", "learning_rate": "schedule.lr_max", "eps": "optimizer.epsilon"}

# The settings of a command in the name of a trial: the first ones with short values.
_MOST_READABLE, _SHORT = 5, r"[\w.+-]{1,12}"

# Settings, and groups of settings, that do not change the result of a trial.
CHANGES_NO_RESULT = {
    *("tracking", "study", "outputs", "fresh", "validate_every", "checkpoint_every"),
    *(f"trainer.{name}" for name in ("log", "names", "resume", "steps", "limit", "grace")),
}

_OF_COMMAND = ("trainer", "settings")  # what only a trial of a command has
_OF_BOTH = ("diagnosis", "tracking", "seed", "study", "outputs", "fresh")


def changes_result(name: str) -> bool:
    """Return whether the setting with this dotted name can change the result of a trial."""
    return name.partition(".")[0] not in CHANGES_NO_RESULT and ".".join(name.split(".")[:2]) not in CHANGES_NO_RESULT


def is_of_decoder(name: str) -> bool:
    """Return whether the setting, or group, with this dotted name is one of this project's decoder alone."""
    group = name.partition(".")[0]
    return group in get_type_hints(Config) and group not in (*_OF_COMMAND, *_OF_BOTH)


def is_of_command(name: str) -> bool:
    """Return whether the setting with this dotted name is one that only a trial of a command has."""
    return name.partition(".")[0] in _OF_COMMAND


def own_settings(config: Config) -> dict[str, Any]:
    """Return the settings that the trial has: its own trainer's, and not those of the other kind of trainer."""
    return {
        name: value
        for name, value in asdict(config).items()
        if not (is_of_decoder(name) if config.runs_command else name in _OF_COMMAND)
    }


def flatten(config: Config) -> dict[str, Any]:
    """Return every value of a trial's configuration under its dotted name, as the command line overrides it."""
    return flatten_dict(own_settings(config))


def flatten_dict(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested dictionaries under dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        dotted: inner
        for name in value
        for dotted, inner in flatten_dict(value[name], f"{prefix}.{name}" if prefix else str(name)).items()
    }


def without_defaults(settings: Any) -> dict[str, Any]:
    """Return the values of a dataclass that are not at a default of the schema, as nested dictionaries.

    Names are made from these. So a field that is added later, with a default, changes no existing name.
    """
    values = {f.name: (getattr(settings, f.name), f.default) for f in fields(settings)}
    return {
        name: without_defaults(value) if is_dataclass(value) else value
        for name, (value, default) in values.items()
        if value != default
    }


def short_name(name: str) -> str:
    """Return the name of a setting in tables, in figures and in MLflow.

    Args:
        name: Its dotted name.

    Returns:
        The name in `SHORT_NAMES`; else the last part of the dotted name, or all of it if the last part is not unique.
        The name of a command's setting is what follows `settings.`.
    """
    if name.startswith(SETTINGS):
        return name.removeprefix(SETTINGS)
    last = name.rpartition(".")[2]
    return SHORT_NAMES.get(name) or (last if _last_parts()[last] == 1 and last not in SHORT_NAMES.values() else name)


def trial_name(config: Config) -> str:
    """Return a trial's name: its main factors, and a hash of all settings that can change its result."""
    if config.runs_command:
        short = {n: v for n, v in flatten_dict(config.settings).items() if re.fullmatch(_SHORT, str(v))}
        parts = [f"{name.rpartition('.')[2]}{value}" for name, value in short.items()]
        return "-".join([*parts[:_MOST_READABLE], f"seed{config.seed}", _digest(config)])
    readable = {
        "eps": config.optimizer.epsilon,
        "lr": config.schedule.lr_max,
        "noise": config.aug.white_noise_std,
        "batch": config.batch.size,
        "seed": config.seed,
    }
    return "-".join([*(f"{name}{value:g}" for name, value in readable.items()), _digest(config)])


def search_name(config: Config, searched: Collection[str]) -> str:
    """Return the name of a search: a hash of all settings that can change its results and are not searched.

    Args:
        config: The settings.
        searched: Names of the settings, or groups of settings, that the search chooses.
    """
    return f"search-{_digest(config, searched)}"


def _digest(config: Config, without: Collection[str] = ()) -> str:
    own = own_settings(config)
    matters = {
        name: value
        for name, value in flatten_dict({n: v for n, v in without_defaults(config).items() if n in own}).items()
        if changes_result(name) and not any(f"{name}.".startswith(f"{w}.") for w in without)
    }
    return hashlib.sha256(json.dumps(matters, sort_keys=True).encode()).hexdigest()[:8]


def dotted_name(short: str) -> str:
    """Return the dotted name of a setting by its `short_name`; of one that is none of ours, that of a command's."""
    return _dotted_names().get(short, f"settings.{short}")


def full_name(name: str) -> str:
    """Return the dotted name of a setting that is given by another name.

    Args:
        name: Its `short_name`, the last part of its dotted name if that is unique, or another usual name. The name of
            a group, or any other name, is returned as it is.
    """
    return _full_names().get(name, name)


@cache
def _full_names() -> dict[str, str]:
    last = {name.rpartition(".")[2]: name for name in _settings() if _last_parts()[name.rpartition(".")[2]] == 1}
    short = {short_name(name): name for name in _settings()}
    groups = {*get_type_hints(Command), "experiment", "debug", "hydra"}
    return {name: full for name, full in (last | short | _ALIASES).items() if name not in groups}


@cache
def _dotted_names() -> dict[str, str]:
    return {short_name(name): name for name in _settings()}


@cache
def _last_parts() -> Counter[str]:
    """Count how many dotted names of the schema end with each last part."""
    return Counter(name.rpartition(".")[2] for name in _settings())


@cache
def _settings() -> tuple[str, ...]:
    """The dotted names of all settings of the schema."""

    def walk(prefix: str, kind: Any) -> Iterator[str]:
        for name, hint in get_type_hints(kind).items():
            inner = next((t for t in (hint, *get_args(hint)) if is_dataclass(t)), None)
            yield from walk(f"{prefix}{name}.", inner) if inner else (f"{prefix}{name}",)

    return tuple(walk("", Config))

"""Names: dotted and short names of settings, and the name of a trial."""

import hashlib
import json
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

_ALIASES = {"batch_size": "batch.size", "learning_rate": "schedule.lr_max", "eps": "optimizer.epsilon"}

# Settings, and groups of settings, that do not change the result of a trial.
CHANGES_NO_RESULT = {"tracking", "study", "outputs", "fresh", "validate_every", "checkpoint_every"}


def flatten(config: Config) -> dict[str, Any]:
    """Return every value of a configuration under its dotted name, as the command line overrides it."""
    return flatten_dict(asdict(config))


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
    """
    last = name.rpartition(".")[2]
    return SHORT_NAMES.get(name) or (last if _last_parts()[last] == 1 and last not in SHORT_NAMES.values() else name)


def trial_name(config: Config) -> str:
    """Return a trial's name: its main factors, and a hash of all settings that can change its result."""
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
    matters = {
        name: value
        for name, value in flatten_dict(without_defaults(config)).items()
        if name.split(".")[0] not in CHANGES_NO_RESULT and not any(f"{name}.".startswith(f"{w}.") for w in without)
    }
    return hashlib.sha256(json.dumps(matters, sort_keys=True).encode()).hexdigest()[:8]


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

"""What settings and trials are called: dotted names, short names, and the name of a trial."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from stability.config.schema import Config

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


@cache
def _ends() -> Counter[str]:
    """How many values of the schema have each end of a dotted name."""

    def walk(kind: Any) -> Iterator[str]:
        for name, hint in get_type_hints(kind).items():
            inner = next((t for t in (hint, *get_args(hint)) if is_dataclass(t)), None)
            yield from walk(inner) if inner else (name,)

    return Counter(walk(Config))

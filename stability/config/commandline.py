"""Rewrites what is short on the command line of a training, before Hydra reads it.

| given | read as |
|---|---|
| `lr=0.002`, `batch_size=48` | `schedule.lr_max=0.002`, `batch.size=48`: the names in tables, figures and MLflow |
| `tags={team: speech}` | `+tracking.tags={team: speech}`: without `+` Hydra accepts only keys that are there |
| `trainer.command=python a.py --lr {lr}` | the same in quotes: in Hydra's grammar braces are for dictionaries |
| `experiment=test1` | `--multirun experiment=test1`: an experiment is a sweep |
| `experiment=test1,test2` | the same, with what the experiments have in common: launcher, seeds, study, claims |
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from stability.config.hydra import conf_folder, explain_error, register_schema, resolve_config
from stability.config.names import SETTINGS, full_name
from stability.config.schema import Config
from stability.core.errors import StabilityError

_PARAMS = "hydra.sweeper.params."
_OF_EXPERIMENT = re.compile(r"[+~]*((study|outputs|fresh)(=|$)|(hydra|sweep)[./])")  # + and ~ are Hydra's
_TEXTS = tuple(f"trainer.{name}" for name in ("command", "config", "log", "resume"))  # each is one text, as it stands


def is_of_experiment(word: str) -> bool:
    """Return whether an override sets something of a whole experiment, and not of one of its trainings."""
    return _OF_EXPERIMENT.match(word) is not None


def full_words(words: Sequence[str]) -> list[str]:
    """Return the words of a command line as Hydra understands them.

    Raises:
        StabilityError: Several experiments are given that cannot be one sweep.
    """
    words = [_with_full_name(word) for word in words]
    experiments = [word.partition("=")[2] for word in words if re.match(r"experiment=(?!null$)", word)]
    flags = [word for word in words if word.startswith("-")]
    if not experiments or any(word.startswith("hydra.mode=") for word in words) or {*flags} - {"--multirun", "-m"}:
        return words
    several = experiments[-1].split(",")
    given = {word.partition("=")[0] for word in words}
    presets = [word for word in words if word.startswith("debug=")]
    shared = _shared_words(several, presets) if len(several) > 1 else []
    return [
        *([] if flags else ["--multirun"]),
        *(word for word in shared if word.partition("=")[0] not in given),
        *words,
    ]


def compose_config(overrides: Sequence[str]) -> Config:
    """Return the configuration that overrides make, as that of one trial.

    Args:
        overrides: As Hydra understands them. Of two values for a setting, the later one counts.

    Raises:
        StabilityError: An override or a value is wrong, or has several values.
    """
    register_schema()
    try:
        for override in OverridesParser.create().parse_overrides([*overrides]):
            if override.is_sweep_override():
                raise StabilityError(f"{override.input_line} has several values. Give one.")
        with initialize_config_dir(str(conf_folder())):
            return resolve_config(compose("config", overrides=[*overrides]))
    except (HydraException, OmegaConfBaseException) as error:
        raise StabilityError(explain_error(error)) from None


def override_of(name: str, value: Any) -> str:
    """Return the override that gives a setting a value: a number, a text, True, False, None, a list or a dictionary."""
    return f"{name}={_written(value)}"


def sweeper_words(sweeper: str, settings: Mapping[str, Any], common: Sequence[str], *, dry_run: bool) -> list[str]:
    """Return the command line of a sweep by a sweeper that has a door of its own.

    Args:
        sweeper: Its name in `conf/hydra/sweeper/`, which is also that of the study unless `common` names one.
        settings: {name: value} of its settings.
        common: The overrides of all trials.
        dry_run: Whether nothing is to be trained.
    """
    given = {word.partition("=")[0] for word in common}
    defaults = {"study": sweeper, "hydra/launcher": "stacked"}
    return [
        "--multirun",
        f"hydra/sweeper={sweeper}",
        *(override_of(name, value) for name, value in defaults.items() if name not in given),
        *(override_of(f"hydra.sweeper.{name}", value) for name, value in settings.items()),
        *(["sweep.dry_run=true"] if dry_run else []),
        *common,
    ]


def _written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_written(own)}' for name, own in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    is_word = re.fullmatch(r"[A-Za-z_][\w./-]*", value) and value.lower() not in ("true", "false", "null", "inf", "nan")
    return value if is_word else f"'{value.replace(chr(39), chr(92) + chr(39))}'"


def _with_full_name(word: str) -> str:
    name, equals, value = word.partition("=")
    if not equals or word.startswith("-"):
        return word
    start = _PARAMS if name.startswith(_PARAMS) else ""
    name = name.removeprefix(start)
    # `batch` is also a group. None of its options is a number.
    name = "batch_size" if name == "batch" and re.match(r"[\d.]|range\(", value) else name
    name = full_name(name)
    if (name in _TEXTS and value != "null") or (name.startswith(SETTINGS) and re.search(r"\{[\w.-]+\}", value)):
        value = _quoted(value)
    return f"{'+' if name == 'tracking.tags' else start}{name}={value}"


def _quoted(text: str) -> str:
    """Return a text as Hydra's grammar quotes it, unless it is quoted already."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text
    quote = next((quote for quote in "'\"" if quote not in text), '"')
    return f"{quote}{text.replace(quote, f'{chr(92)}{quote}')}{quote}"


def _shared_words(experiments: Sequence[str], presets: Sequence[str]) -> list[str]:
    """Return the overrides that some experiments have in common, and that Hydra needs before it chooses one of them."""
    first, *others = [_sweep_settings([f"experiment={name}", *presets]) for name in experiments]
    for name, other in zip(experiments[1:], others, strict=True):
        if differ := [setting for setting in {**first, **other} if first.get(setting) != other.get(setting)]:
            raise StabilityError(
                f"{experiments[0]} and {name} differ in {', '.join(differ)}, so they cannot be one sweep: give each "
                "experiment a command of its own."
            )
    return [f"{setting}={value}" for setting, value in first.items()]


def _sweep_settings(overrides: list[str]) -> dict[str, Any]:
    register_schema()
    try:
        with initialize_config_dir(str(conf_folder())):
            cfg = compose("config", overrides=overrides, return_hydra_config=True)
    except HydraException as error:
        raise StabilityError(explain_error(error)) from None
    choices, claims = cfg.hydra.runtime.choices, cfg.sweep.claims
    params: dict[str, Any] = cfg.hydra.sweeper.params or {}
    return {
        **{group: choices[group] for group in ("hydra/launcher", "hydra/sweeper")},
        "study": cfg.study,
        "sweep.claims": "null" if claims is None else str(claims),
        "hydra.sweeper.params": f"{{{', '.join(f'{name}: {json.dumps(values)}' for name, values in params.items())}}}",
    }

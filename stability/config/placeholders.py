"""The placeholders in the command of a trial that a program of the user's own trains: `--lr {lr} --seed {seed}`.

`{NAME}` stands for `settings.NAME`, and `{seed}`, `{folder}` and `{config}` for what the trial itself gives. `{{NAME}}`
is a plain `{NAME}`. Other braces, such as those of JSON, stay as they are.
"""

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from stability.config.names import SETTINGS, flatten_dict
from stability.config.schema import Config
from stability.core.errors import StabilityError
from stability.core.text import first_of

GIVEN = ("seed", "folder", "config")  # what a placeholder may name besides a setting

_PLACEHOLDER = re.compile(r"\{\{([A-Za-z_][\w.-]*)\}\}|\{([A-Za-z_][\w.-]*)\}")


def fill(text: str, values: Mapping[str, Any]) -> str:
    """Replace the placeholders in a text by values, which are written as on the command line: 0.01, true, null, [1,2].

    Args:
        text: The text.
        values: The value of each name. Placeholders of other names stay as they are.
    """

    def value_of(match: re.Match[str]) -> str:
        literal, name = match.groups()
        return f"{{{literal}}}" if literal else _text(values[name]) if name in values else match[0]

    return _PLACEHOLDER.sub(value_of, text)


def fill_settings(config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by their dotted names, with the placeholders in their texts replaced.

    Args:
        config: The configuration of a trial that a command trains.
        values: What the placeholders stand for. A setting that is nothing but a placeholder gets the value itself.
    """
    filled = {}
    for name, value in flatten_dict(config.settings).items():
        if isinstance(value, str):
            alone = _PLACEHOLDER.fullmatch(value)
            value = values[alone[2]] if alone and alone[2] in values else fill(value, values)
        filled[name] = value
    return filled


def settings_of_file(config: Config) -> list[str]:
    """Return the names of the settings that go into the file `trainer.config`: those without a placeholder."""
    return [] if config.trainer.config is None else [n for n in flatten_dict(config.settings) if n not in _used(config)]


def uses_seed(config: Config) -> bool:
    """Return whether the program is told the seed."""
    return "seed" in _used(config) or any("seed" in _names(v) for v in flatten_dict(config.settings).values())


def check_command(config: Config) -> None:
    """Check that the command of a trial can be read, and that settings and placeholders belong together.

    Raises:
        StabilityError: They do not. The message says how to correct it.
    """
    trainer, settings = config.trainer, flatten_dict(config.settings)
    for name, text in (("command", trainer.command or ""), ("resume", trainer.resume)):
        try:
            missing = text is not None and not shlex.split(text)
        except ValueError as error:
            raise StabilityError(f"trainer.{name} cannot be read as a command: {error}. It is: {text}") from None
        if missing:
            raise StabilityError(f"trainer.{name} must be given, as in trainer.{name}='python train.py --lr {{lr}}'.")
    known = [*settings, *GIVEN]
    if unknown := [name for name in _used(config) if name not in known]:
        there = first_of([*settings, *GIVEN], 12)
        raise StabilityError(
            f"Nothing fills the placeholder {{{unknown[0]}}}: give settings.{unknown[0]}=VALUE. There are: {there}. "
            f"Where the program is to read the braces themselves, write {{{{{unknown[0]}}}}}."
        )
    for name, value in settings.items():
        if wrong := [inner for inner in _names(value) if inner not in GIVEN]:
            raise StabilityError(
                f"{SETTINGS}{name}={value}: the value of a setting may hold only {{seed}}, {{folder}} and {{config}}, "
                f"and not {{{wrong[0]}}}."
            )
    if "config" in _used(config) and trainer.config is None:
        raise StabilityError("{config} is the file that is written for the trial: name its model, trainer.config=FILE.")
    if (seed := settings.get("seed")) is not None and "seed" not in _names(seed):
        raise StabilityError(
            f"settings.seed={seed}: a trial's seed is given as seed={seed}, without settings. The program gets it "
            "where its command has {seed}, or in its file with settings.seed='{seed}'."
        )
    if trainer.config is None and (unused := [name for name in settings if name not in _used(config)]):
        raise StabilityError(
            f"The program would not get settings.{unused[0]}: write {{{unused[0]}}} into trainer.command, for example "
            f"--{unused[0].rpartition('.')[2]} {{{unused[0]}}}; or name the program's file with trainer.config=FILE."
        )


def _used(config: Config) -> list[str]:
    """The names of the placeholders in the command, in that for resuming, and in the place of the log."""
    trainer = config.trainer
    return [name for text in (trainer.command, trainer.resume, trainer.log) for name in _names(text)]


def _names(value: object) -> list[str]:
    return [match[2] for match in _PLACEHOLDER.finditer(value) if match[2]] if isinstance(value, str) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)

"""Prepares the program of a trial: its words, the folder that it runs in, and its configuration file."""

import copy
import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stability.config.placeholders import fill, fill_settings, settings_of_file
from stability.config.schema import Config
from stability.core.errors import StabilityError
from stability.core.files import FIGURE, OUTPUT, RECORDING, SIGNALS_FILE, VALIDATION_FILE, WORK, write_atomically
from stability.core.text import first_of, printable
from stability.diagnosis.readers import check_names
from stability.diagnosis.readers.tables import read_tables

_SCRIPTS = (".py", ".sh")
_FORMATS = (".yaml", ".yml", ".json")
# What only a shell understands: these words unless they are quoted, and these at the beginning of a command.
_QUOTED = re.compile(r"""'[^']*'|"(\\.|[^"\\])*\"""")
_OF_SHELLS = re.compile(r"[|;<]|\|\||&&?|\d?>.*")
_FIRST_OF_SHELLS = re.compile(r"cd|export|source|\.|\w+=.*")
_SHOWN = 12  # names that a message lists


class Program(NamedTuple):
    """A program that can be started.

    Attributes:
        words: Its path and its arguments.
        folder: Where it runs.
        log: The log to follow.
        environment: Its environment.
        resumes: Whether it goes on from where an earlier run was stopped.
    """

    words: list[str]
    folder: Path
    log: Path
    environment: dict[str, str]
    resumes: bool


def prepare(config: Config, folder: Path) -> Program:
    """Make the folder in which the program of a trial runs, and write its configuration file.

    Unless the program resumes, what an earlier run has left is deleted.

    Args:
        config: The configuration of a trial that a command trains.
        folder: The trial's folder.

    Raises:
        StabilityError: The configuration file lacks a setting, or the log would be outside of the folder.
    """
    trainer, work = config.trainer, folder.absolute() / WORK
    resumes = resumes_in(config, folder)
    if not resumes:
        if work.exists():
            shutil.rmtree(work)
        for name in (OUTPUT, SIGNALS_FILE, VALIDATION_FILE, RECORDING, FIGURE):
            (folder / name).unlink(missing_ok=True)
    work.mkdir(exist_ok=True)
    values = _values(config, work)
    if trainer.config is not None:
        _write_file(Path(trainer.config), work, {name: values[name] for name in settings_of_file(config)})
    log = folder / OUTPUT if trainer.log is None else work / fill(trainer.log, values)
    if trainer.log is not None and not Path(os.path.normpath(log)).is_relative_to(os.path.normpath(work)):
        raise StabilityError(
            f"trainer.log={trainer.log}: a trial's log has to be in the folder in which its program runs, or trials "
            "would read each other's. Give its path from there."
        )
    words = command_words(config, folder, resumes=resumes)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}  # else what Python prints to a file comes in large pieces
    if "-m" in words:  # as where the command was given, Python finds modules in the current folder
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH"))))
    return Program(words, work, log, environment, resumes)


def command_words(config: Config, folder: Path, *, resumes: bool = False) -> list[str]:
    """Return the words that start the program of a trial.

    Args:
        config: The configuration of a trial that a command trains.
        folder: The trial's folder.
        resumes: Whether the program goes on from where it was stopped.
    """
    command, values = config.trainer.resume if resumes else config.trainer.command, _values(config, folder / WORK)
    return [_as_path(fill(word, values)) for word in shlex.split(command or "")]


def resumes_in(config: Config, folder: Path) -> bool:
    """Return whether the program of a trial would go on from an earlier run: it can, and the run has left readings."""
    try:
        recording = read_tables(folder)
    except StabilityError:
        return False
    has_readings = len(recording.signals.steps) + len(recording.validation.steps) > 0
    return config.trainer.resume is not None and (folder / WORK).is_dir() and has_readings


def check_program(config: Config) -> None:
    """Check that a trial's program is there, and that its configuration file has the settings.

    Raises:
        StabilityError: It is not. The message says how to correct it.
    """
    trainer = config.trainer
    check_names(trainer.names)
    settings = fill_settings(config, {"seed": config.seed})
    for name, command in (("trainer.command", trainer.command), ("trainer.resume", trainer.resume)):
        if command is not None:
            _refuse_shell(name, command)
            _check_words(name, [fill(word, settings) for word in shlex.split(command)])
    if trainer.config is not None:
        _with_settings(Path(trainer.config), {name: settings[name] for name in settings_of_file(config)})


def _refuse_shell(name: str, command: str) -> None:
    first, *others = _QUOTED.sub("''", command).split()
    if for_shell := [*filter(_OF_SHELLS.fullmatch, others), *filter(_FIRST_OF_SHELLS.fullmatch, [first])]:
        raise StabilityError(
            f"{name}: {for_shell[0]} is for a shell, and the program is started without one. Write the shell, as in "
            "\"sh -c 'cd /repo && python train.py --lr {lr}'\"; for a variable, env NAME=VALUE python train.py."
        )


def _check_words(name: str, words: list[str]) -> None:
    first, script = words[0], next((word for word in words[1:] if not word.startswith("-")), "")
    if "{" not in first and shutil.which(first if "/" not in first else Path.cwd() / first) is None:
        if (Path.cwd() / first).is_file():
            there = f"{first} cannot be executed. Start it with its interpreter, as in `python {first}` or `sh {first}`"
            raise StabilityError(f"{name}: {there}, or make it executable: chmod +x {first}")
        where = f"in {Path.cwd()}" if "/" in first else "on the PATH"
        raise StabilityError(f"{name}: there is no program {first} {where}. Check its name, or give its whole path.")
    if script.endswith(_SCRIPTS) and not re.search(r"[{\s]", script) and not (Path.cwd() / script).is_file():
        raise StabilityError(f"{name}: there is no {script} in {Path.cwd()}. Check its name, or give its whole path.")


def _as_path(value: Any) -> Any:
    """Return the absolute path if a word or setting names a file where the command was given, else the value itself.

    The program runs elsewhere. A name without a slash and a suffix may be any word, so it is left as it is.
    """
    if not isinstance(value, str):
        return value
    option, equals, path = value.rpartition("=") if value.startswith("-") else ("", "", value)
    if ("/" in path or Path(path).suffix) and not Path(path).is_absolute() and (Path.cwd() / path).exists():
        return f"{option}{equals}{Path.cwd() / path}"
    return value


def _values(config: Config, work: Path) -> dict[str, Any]:
    """What each placeholder stands for."""
    given = {"seed": config.seed, "folder": str(work.absolute())}
    if config.trainer.config is not None:
        given["config"] = str(work.absolute() / Path(config.trainer.config).name)
    return {name: _as_path(value) for name, value in fill_settings(config, given).items()} | given


def _write_file(source: Path, folder: Path, settings: Mapping[str, Any]) -> None:
    """Write a copy of a configuration file with other values into a folder."""
    content = _with_settings(source, settings)
    if source.suffix == ".json":
        text = json.dumps(content, indent=2)
    else:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_atomically(folder / source.name, text.encode())


def _with_settings(source: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read a configuration file and replace the values of some of its settings."""
    content = copy.deepcopy(_read_file(source.absolute()))
    for name, value in settings.items():
        place: Any = content
        *groups, last = name.split(".")
        for group in groups:
            place = place.get(group) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place or isinstance(place[last], dict):
            has = first_of([str(key) for key in (place if isinstance(place, dict) else content)], _SHOWN)
            raise StabilityError(
                f"trainer.config={source} has no value called {printable(name)} to replace with settings.{name}. "
                f"It has {printable(has)}. Check the name, or write the setting into the file."
            )
        place[last] = value
    return content


@lru_cache(maxsize=8)  # the plan of a sweep checks it for every trial
def _read_file(source: Path) -> dict[str, Any]:
    if source.suffix not in _FORMATS:
        raise StabilityError(
            f"trainer.config={source}: only YAML and JSON files can be rewritten ({', '.join(_FORMATS)}). Give the "
            "settings as arguments of the command instead: --lr {lr}."
        )
    try:
        if source.suffix == ".json":
            content = json.loads(source.read_text(encoding="utf-8-sig"))
        else:  # with OmegaConf, because plain YAML reads 1e-3 as a text
            content = OmegaConf.to_container(OmegaConf.load(source), resolve=False)
    except FileNotFoundError:
        raise StabilityError(f"trainer.config={source}: there is no such file.") from None
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise StabilityError(f"trainer.config={source} cannot be read: {_reason(error)}. Mend the file.") from None
    if not isinstance(content, dict) or not content:
        raise StabilityError(
            f"trainer.config={source} is not a mapping of names to values. Give the file that holds the settings."
        )
    return content


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return printable(f"{error.problem}, line {error.problem_mark.line + 1}")
    return printable(str(error).partition("\n")[0])

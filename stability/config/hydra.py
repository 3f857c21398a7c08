"""Connects the schema with Hydra: registers it, resolves what Hydra composed, and explains Hydra's errors."""

import re
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from stability.config import schema
from stability.config.names import SHORT_NAMES, flatten_dict, is_of_decoder, search_name, trial_name
from stability.config.placeholders import check_command
from stability.config.schema import Command, Config, check
from stability.core.checkout import ROOT
from stability.core.errors import StabilityError
from stability.core.text import printable


def register_schema() -> None:
    """Add the schema, and the resolvers that `conf/` uses, to Hydra. Call it before Hydra composes."""
    node = OmegaConf.structured(Command)
    for free in (node.settings, node.trainer.names):
        OmegaConf.set_struct(free, False)  # the names are the user's: Hydra takes them without a +
    ConfigStore.instance().store(name="schema", node=node, replace=True)
    OmegaConf.register_resolver("scaled", _scaled, replace=True)
    OmegaConf.register_resolver("trial_name", _trial_name, replace=True)
    OmegaConf.register_resolver("search_name", _search_name, replace=True)


def conf_folder() -> Path:
    """Return the folder `conf`: at the top of a checkout, or inside the package of an installed wheel."""
    in_checkout, in_package = ROOT / "conf", Path(__file__).parents[1] / "conf"
    # Next to an installed package, a folder `conf` may belong to another program.
    return in_checkout if (ROOT / "pyproject.toml").is_file() and in_checkout.is_dir() else in_package


def resolve_config(cfg: DictConfig, *, searched: bool = False) -> Config:
    """Return the typed and checked configuration of a trial, with every interpolation resolved.

    Args:
        cfg: What Hydra composed, or what a trial's `config.yaml` holds.
        searched: Whether it is that of a whole search, which chooses further settings for each trial.

    Raises:
        StabilityError: A setting is unknown, missing or out of bounds.
    """
    names = [field.name for field in fields(Config)]
    if unknown := cfg.keys() - {*names, "hydra", "sweep"}:
        raise StabilityError(f"Unknown in the configuration: {', '.join(map(str, unknown))}. {_there_are(Config)}")
    typed = cfg if OmegaConf.get_type(cfg) is Command else _with_types(OmegaConf.masked_copy(cfg, names))
    try:
        values: dict[str, Any] = {name: typed[name] for name in names}
        values |= {name: OmegaConf.to_object(v) for name, v in values.items() if OmegaConf.is_config(v)}
    except MissingMandatoryValue:
        missing = OmegaConf.missing_keys(OmegaConf.masked_copy(typed, names))
        raise StabilityError(f"{', '.join(missing)} must be given, as in {min(missing)}=VALUE.") from None
    config = Config(**values)
    config.diagnosis.stop_on = sorted({*config.diagnosis.stop_on})  # its order is no part of a trial's name
    check(config)
    if config.runs_command and not searched:
        check_command(config)
        _refuse_decoder_settings(cfg)
    return config


def scale_settings(model: str, data: str) -> dict[str, Any]:
    """Return {dotted name: value} of the settings that make the scale of a study: the model's, and those of its data.

    Args:
        model: An option of `conf/model/`.
        data: An option of `conf/data/`. Where its files are is not part of the scale.

    Raises:
        StabilityError: There is no such option.
    """
    register_schema()
    running = GlobalHydra.instance().is_initialized()  # in a sweep; in a report it is not
    try:
        with nullcontext() if running else initialize_config_dir(str(conf_folder())):
            cfg = compose("config", overrides=[f"model={model}", f"data={data}"])
    except HydraException as error:
        raise StabilityError(explain_error(error)) from None
    settings = flatten_dict({name: OmegaConf.to_container(cfg[name]) for name in ("model", "data")})
    return {name: value for name, value in settings.items() if name not in ("data.path", "data.on_bad_utterance")}


def scaled(steps: int, time_scale: float) -> int:
    """Convert a number of steps of the official run to a model's time scale."""
    return max(1, round(steps * time_scale))


def given_overrides(cfg: DictConfig) -> list[str]:
    """Return the overrides of the command line as they were given. In the list itself, their interpolations resolve."""
    found: Any = OmegaConf.select(cfg, "hydra.overrides.task")  # a trial's `config.yaml` has none
    given: Any = () if found is None else OmegaConf.to_container(found, resolve=False)
    return [*given]


def read_config(path: Path) -> DictConfig:
    """Read a trial's `config.yaml`.

    Raises:
        StabilityError: It is no YAML, or no configuration.
    """
    try:
        found = OmegaConf.load(path)
        if isinstance(found, DictConfig) and found:
            return found
        reason = "it has no settings"
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        reason = str(error).partition("\n")[0]
    raise StabilityError(f"{path} is not a trial's configuration: {printable(reason)}.")


def explain_error(error: BaseException) -> str:
    """Return the message of an error from Hydra or OmegaConf, without their internals and with the names to choose."""
    text = "\n".join(str(e).strip() for e in (error, error.__cause__) if e is not None)
    if "hydra.mode changed" in text:
        return "An experiment is a sweep: add --multirun. To train one trial of it, add hydra.mode=RUN."
    if unreadable := re.search(r"parsing index: \d+, string: (.*?) out of \[", text):
        return _explain_grammar(unreadable[1].strip())
    if several := re.search(r"Ambiguous value for argument '(.*?)=(.*)'", text):
        name, values = several.groups()
        return (
            f"{name}={values} has several values. To sweep over them, add --multirun. For a list, write "
            f"'{name}=[{values}]'. For a text with a comma, quote it: '{name}=\"{values}\"'."
        )
    if hydras := re.search(r"Sweeping over Hydra's configuration is not supported : '(.*?)=(.*)'", text):
        name, values = hydras.groups()
        if name.startswith("hydra.sweeper.params."):
            return f"Give {name.removeprefix('hydra.sweeper.params.')}={values}, without hydra.sweeper.params."
        return f"{name} is one of Hydra's own settings, which cannot be swept: give one value."
    if no_list := re.search(r"override (\S+?)=(.*)\nInvalid value assigned: \w+ is not a ListConfig", text):
        return f"{no_list[1]} is a list. Write it in brackets: '{no_list[1]}=[{no_list[2]}]'."
    text = re.sub(r"\w+ raised while resolving interpolation: *", "", text)
    internals = (
        r"\nTo append to your config use .*",
        r"\n *(full_key|reference_type|object_type)[:=].*",
        r"\nConfig search path:(\n|.)*",
    )
    text = re.sub("|".join(internals), "", text).replace("\t", "  ")
    owner = re.search(r"not in '(\w+)'", text)
    if owner and hasattr(schema, owner[1]):  # a class of our schema, not one of Hydra's
        text += f"\n{_there_are(getattr(schema, owner[1]))}"
    return text


def _explain_grammar(word: str) -> str:
    """Return how to write a word that Hydra's grammar of overrides does not allow."""
    name, equals, value = word.partition("=")
    if not equals:
        return f"Cannot read {word}. Write NAME=VALUE, without blanks around = and commas."
    if value.endswith(","):
        return f"Cannot read {word} – write no blanks after commas: {name}=A,B. Or quote the whole: '{name}=A, B'."
    return (
        f"Cannot read {word}. Close all brackets and quotes. If the value has other characters than letters, digits "
        f"and _-./:, quote it, and quote the whole for the shell: '{name}=\"{value}\"'."
    )


def _refuse_decoder_settings(cfg: DictConfig) -> None:
    """Raise if an override gives a command a setting of the decoder, which would change nothing."""
    for override in OverridesParser.create().parse_overrides(given_overrides(cfg)):
        name = override.key_or_group
        if is_of_decoder(name):
            own = name.rpartition(".")[2] if name not in SHORT_NAMES else SHORT_NAMES[name]
            raise StabilityError(
                f"{override.input_line} is a setting of this project's decoder, which trainer=command does not train: "
                f"remove it, or give the program's own setting, such as settings.{own}=VALUE."
            )


def _there_are(group: Any) -> str:
    return f"There are: {', '.join(f.name for f in fields(group))}."


def _with_types(cfg: DictConfig) -> DictConfig:
    """Put a configuration that was read from a file under the schema."""
    typed = OmegaConf.merge(OmegaConf.structured(Config), cfg)
    assert isinstance(typed, DictConfig)
    return typed


def _scaled(steps: int, *, _root_: DictConfig) -> int:
    return scaled(steps, _root_.model.time_scale)


def _search_name(*, _root_: DictConfig) -> str:
    given = OverridesParser.create().parse_overrides(given_overrides(_root_))
    searched = dict.fromkeys(_root_.hydra.sweeper.params or (), True)
    searched |= {override.key_or_group: override.is_sweep_override() for override in given}  # the command's count
    return search_name(
        resolve_config(_root_, searched=True), [name for name, is_searched in searched.items() if is_searched]
    )


def _trial_name(*, _root_: DictConfig) -> str:
    return trial_name(resolve_config(_root_))

"""How Hydra composes a configuration: the schema and resolvers it knows, and its messages in plain words."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from stability.config import schema
from stability.config.names import trial_name
from stability.config.schema import Command, Config, check
from stability.core.checkout import ROOT
from stability.core.errors import StabilityError


def register_schema() -> None:
    """Make Hydra know the schema and the resolvers; call it before Hydra composes."""
    ConfigStore.instance().store(name="schema", node=Command, replace=True)
    OmegaConf.register_resolver("scaled", _scaled, replace=True)
    OmegaConf.register_resolver("trial_name", _trial_name, replace=True)


def conf_folder() -> Path:
    """The configuration's folder: in the checkout, or beside the package in an installed wheel."""
    beside, inside = ROOT / "conf", Path(__file__).parents[1] / "conf"
    return beside if (ROOT / "pyproject.toml").is_file() and beside.is_dir() else inside


def resolve_config(cfg: DictConfig) -> Config:
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
    check(config)
    return config


def _typed(cfg: DictConfig) -> DictConfig:
    """What was read from a file, under the schema that Hydra composes by."""
    typed = OmegaConf.merge(OmegaConf.structured(Config), cfg)
    assert isinstance(typed, DictConfig)
    return typed


def explain_error(error: BaseException) -> str:
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
    if owner and hasattr(schema, owner[1]):  # ours, and not Hydra's
        text += f"\nThere are: {', '.join(f.name for f in fields(getattr(schema, owner[1])))}."
    return text


def _scaled(steps: int, *, _root_: DictConfig) -> int:
    """A length in steps of the official run, at the model's time scale."""
    scale: float = _root_.model.time_scale
    return max(1, round(steps * scale))


def _trial_name(*, _root_: DictConfig) -> str:
    return trial_name(resolve_config(_root_))

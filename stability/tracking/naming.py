"""What trackers call the settings and signals of a trial."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from stability.config.hydra import read_config
from stability.config.names import flatten_dict, short_name
from stability.core.files import SIGNALS_FILE, VALIDATION_FILE, config_of

PREFIXES = {SIGNALS_FILE: "", VALIDATION_FILE: "validation/"}  # of the metrics of a trial's tables
_NOT_PARAMETERS = ("tracking", "outputs", "fresh")  # settings that do not describe the trial


def metric_name(table: str, signal: str) -> str:
    """Return the name of a signal of a table: trackers group charts by what stands before a slash."""
    return PREFIXES[table] + signal.replace(".", "/", 1)


def parameters(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration under their short names. Lists are text."""
    return {
        short_name(name): json.dumps(value) if isinstance(value, list) else value
        for name, value in flatten_dict(config).items()
        if name.partition(".")[0] not in _NOT_PARAMETERS
    }


def read_plain_config(folder: Path) -> dict[str, Any]:
    """Read the settings of a trial, or of a job of a Hydra app, as nested dictionaries.

    Interpolations stay as they are written: somebody else's could name a variable of the user's environment.
    """
    config = OmegaConf.to_container(read_config(config_of(folder)), resolve=False)
    assert isinstance(config, dict)
    return {str(name): value for name, value in config.items()}

"""Reads the configurations of many trials, which have most of their text in common, and the settings of a Hydra job."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from stability.config.names import flatten_dict
from stability.core.errors import StabilityError
from stability.core.files import HYDRA_CONFIG, HYDRA_OVERRIDES, HYDRA_OWN

_CHOICES = re.compile(r"^    choices:\n((?:      .*\n)+)", re.MULTILINE)  # of options, among what is Hydra's own
_SIGNS = "+~"  # in front of an override that adds or deletes


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration as nested dictionaries. Interpolations stay as they are written.

    Raises:
        StabilityError: It is no YAML, or no mapping.
        OSError: It cannot be read.
    """
    config: dict[str, Any] = {}
    try:
        for group in re.split(r"\n(?=\w)", path.read_text()):
            config |= _parsed(group) or {}
    except (yaml.YAMLError, ValueError, TypeError):
        raise StabilityError(f"{path.name} is half written, or another program wrote it") from None
    return config


def job_settings(job: Path) -> dict[str, Any]:
    """Read the settings of a job of a Hydra app: which options were chosen, what was overridden, and all the rest.

    A setting that was overridden comes before those that follow from it.

    Raises:
        StabilityError: Its configuration is no YAML, or no mapping.
        OSError: It cannot be read.
    """
    settings = flatten_dict(read_config(job / HYDRA_CONFIG))
    overridden = [word.lstrip(_SIGNS).partition("=")[0].partition("@")[0] for word in _overrides(job)]
    chosen = _choices(job)
    first = {name: settings[name] for name in overridden if name in settings}
    return {name: chosen[name] for name in chosen if name not in settings} | first | settings


def _overrides(job: Path) -> list[str]:
    """The overrides that a job was started with; empty if they are not kept."""
    try:
        kept = _parsed((job / HYDRA_OVERRIDES).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    return [word for word in kept if isinstance(word, str)] if isinstance(kept, list) else []


def _choices(job: Path) -> dict[str, Any]:
    """{group: option} of the app's own groups, as Hydra has recorded them."""
    try:
        found = _CHOICES.search((job / HYDRA_OWN).read_text())
        kept = _parsed(found[1]) if found else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return {name: option for name, option in kept.items() if not str(name).startswith("hydra/")}


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Any:
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))

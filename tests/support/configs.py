"""Configurations for tests, composed from `conf/` as the command line does."""

from copy import deepcopy
from functools import cache

from hydra import compose, initialize_config_dir

from stability.config.hydra import conf_folder, register_schema, resolve_config
from stability.config.schema import Config

TINY = (
    *("model.layers=2", "model.units=32", "batch.size=6", "batch.days=3"),
    *("schedule.warmup_steps=4", "schedule.decay_steps=30", "tracking=none", "device=cpu"),
)


def composed(*overrides: str) -> Config:
    """Return the default configuration with these overrides."""
    return deepcopy(_composed(overrides))


def tiny(*overrides: str) -> Config:
    """A network of a few thousand parameters on small batches, with a short schedule."""
    return composed(*TINY, *overrides)


@cache
def _composed(overrides: tuple[str, ...]) -> Config:
    register_schema()
    with initialize_config_dir(str(conf_folder())):
        return resolve_config(compose("config", overrides=list(overrides)))

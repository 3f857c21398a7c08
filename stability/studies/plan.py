"""The trials that a sweep is going to have, before any of them is begun."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict

from stability import config
from stability.config import CHANGES_NO_RESULT, USUAL, Config, short_name
from stability.errors import StabilityError
from stability.studies.trials import level_text

Cell = tuple[tuple[str, Any], ...]  # factors by their dotted names, with their levels


@dataclass(frozen=True)
class Planned:
    """A trial of a sweep, and the folder that is its own."""

    config: Config
    folder: Path


@dataclass(frozen=True)
class Plan:
    """A sweep's trials in their order, each once; `repeated` more are the same as one of them."""

    trials: tuple[Planned, ...]
    repeated: int

    @cached_property
    def factors(self) -> tuple[str, ...]:
        """What varies besides the seed, by dotted names. Of what varies together, the one with a usual name."""
        values = [config.flatten(trial.config) for trial in self.trials]
        usual = [*USUAL, *(name for name in values[0] if name not in USUAL)]
        told: dict[tuple[int, ...], str] = {}
        for name in usual:
            if name == "seed" or name.split(".")[0] in CHANGES_NO_RESULT:
                continue
            levels = [_level(v.get(name)) for v in values]
            first = {level: at for at, level in reversed([*enumerate(levels)])}
            if len(first) > 1:
                told.setdefault(tuple(first[level] for level in levels), name)
        return tuple(told.values())

    @cached_property
    def cells(self) -> dict[Cell, list[Planned]]:
        """The trials by the levels of the factors, of each cell those that differ in the seed."""
        cells: dict[Cell, list[Planned]] = {}
        for trial in self.trials:
            values = config.flatten(trial.config)
            cell = tuple((name, _level(values.get(name))) for name in self.factors)
            cells.setdefault(cell, []).append(trial)
        return cells

    def describe(self, trial: Planned) -> str:
        """What sets the trial apart from the others, in words."""
        values = config.flatten(trial.config)
        levels = {name: _level(values.get(name)) for name in (*self.factors, "seed")}
        return "  ".join(f"{short_name(name)} {level_text(level)}" for name, level in levels.items())


def plan(cfg: DictConfig) -> Plan | None:
    """The trials of the sweep that Hydra composed `cfg` for; None where its sweeper chooses them as it goes.

    A trial that cannot be raises the error that Hydra or `config.resolve` has for it.
    """
    if cfg.hydra.sweeper._target_ != f"{BasicSweeper.__module__}.{BasicSweeper.__name__}":
        return None
    trials: dict[Path, Planned] = {}
    jobs = grid(cfg)
    for number, job in enumerate(jobs):
        composed = GlobalHydra.instance().config_loader().load_sweep_config(cfg, job)
        with open_dict(composed):
            composed.hydra.job.id, composed.hydra.job.num = str(number), number  # a folder may be named by them
        folder = Path(composed.hydra.sweep.dir, composed.hydra.sweep.subdir)
        trials.setdefault(folder, Planned(config.resolve(composed), folder))
    return Plan(tuple(trials.values()), len(jobs) - len(trials))


def grid(cfg: DictConfig) -> Sequence[list[str]]:
    """All combinations of what is swept, each as the overrides of its job."""
    arguments = [f"{name}={value}" for name, value in (cfg.hydra.sweeper.get("params") or {}).items()]
    arguments.extend(map(str, cfg.hydra.overrides.task))  # those of the command line win
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
    (jobs,) = BasicSweeper.split_arguments(overrides, None)
    if not jobs:
        raise StabilityError("There is nothing to sweep: a range or a list of choices is empty.")
    return jobs


def _level(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

"""The trials that a sweep is going to have, before any of them is begun."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from stability.analysis.trials import level_text
from stability.config.hydra import explain_error, resolve_config
from stability.config.names import CHANGES_NO_RESULT, USUAL, flatten, short_name, trial_name
from stability.config.schema import Config
from stability.core.errors import StabilityError

_SHOWN = 4  # of jobs that cannot be for the same reason

Cell = tuple[tuple[str, Any], ...]  # factors by their dotted names, with their levels


@dataclass(frozen=True)
class Planned:
    """A trial of a sweep, and the folder that is its own."""

    config: Config
    folder: Path


@dataclass(frozen=True)
class Plan:
    """A sweep's trials in their order, each once; `repeated` more are the same as one of them.

    Of the jobs that cannot be, `impossible` has what sets them apart and the reason.
    """

    trials: tuple[Planned, ...]
    repeated: int
    impossible: tuple[tuple[str, str], ...]

    @property
    def jobs(self) -> int:
        """How many there are in all."""
        return len(self.trials) + self.repeated + len(self.impossible)

    @cached_property
    def factors(self) -> tuple[str, ...]:
        """What varies besides the seed, by dotted names. Of what varies together, the one with a usual name."""
        values = [flatten(trial.config) for trial in self.trials]
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
            values = flatten(trial.config)
            cell = tuple((name, _level(values.get(name))) for name in self.factors)
            cells.setdefault(cell, []).append(trial)
        return cells

    def describe(self, trial: Planned) -> str:
        """What sets the trial apart from the others, in words."""
        values = flatten(trial.config)
        levels = {name: _level(values.get(name)) for name in (*self.factors, "seed")}
        return "  ".join(f"{short_name(name)} {level_text(level)}" for name, level in levels.items())


class GridSweeper(BasicSweeper):
    """Hydra's sweeper over all combinations: `hydra/sweeper=basic`."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None) -> None:
        check_count("hydra.sweeper.max_batch_size", max_batch_size, or_null=True)
        super().__init__(max_batch_size, params)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing: `plan` has composed each of them, and one that cannot be need not stop the others."""


def plan(cfg: DictConfig) -> Plan | None:
    """The trials of the sweep that Hydra composed `cfg` for; None where its sweeper chooses them as it goes."""
    if cfg.hydra.sweeper._target_ != f"{GridSweeper.__module__}.{GridSweeper.__name__}":
        return None
    trials: dict[Path, Planned] = {}
    impossible = []
    jobs = grid(cfg)
    for number, job in enumerate(jobs):
        try:
            _, trial = compose(cfg, number, job)
            same = trials.setdefault(trial.folder, trial)
            if trial_name(same.config) != trial_name(trial.config):
                raise StabilityError(f"{trial.folder} is another trial's: leave hydra.sweep.subdir as it is.")
        except StabilityError as error:
            impossible.append((swept(cfg, job), str(error)))
    return Plan(tuple(trials.values()), len(jobs) - len(trials) - len(impossible), tuple(impossible))


_composed: WeakKeyDictionary[ConfigLoader, dict[tuple[str, ...], bytes]] = WeakKeyDictionary()


def compose(cfg: DictConfig, number: int | None, job: Sequence[str]) -> tuple[DictConfig, Planned]:
    """Compose a job of the sweep that Hydra composed `cfg` for, and the trial that it is, whatever its number for None.

    StabilityError if it cannot be. Hydra takes a tenth of a second for it: a launcher gets what the plan had composed.
    """
    loader = GlobalHydra.instance().config_loader()
    kept, key = _composed.setdefault(loader, {}), tuple(job)
    try:
        if key in kept:
            composed = pickle.loads(kept.pop(key))
        else:
            composed = loader.load_sweep_config(cfg, [*job])
            kept[key] = pickle.dumps(composed)
        if number is not None:
            with open_dict(composed):
                composed.hydra.job.id, composed.hydra.job.num = str(number), number  # a folder may be named by them
        return composed, Planned(resolve_config(composed), Path(composed.hydra.sweep.dir, composed.hydra.sweep.subdir))
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: of GROUP=null
        raise StabilityError(explain_error(error)) from error


def check_count(name: str, value: object, *, or_null: bool = False) -> None:
    """Raise StabilityError where a setting is no whole number of 1 or more, which True is not."""
    if not (type(value) is int and value >= 1) and not (or_null and value is None):
        raise StabilityError(f"{name}={value}: it has to be a whole number of 1 or more{', or null' * or_null}.")


def swept(cfg: DictConfig, job: Sequence[str]) -> str:
    """What sets a job apart from the others of its sweep, in words."""
    given = OverridesParser.create().parse_overrides([*cfg.hydra.overrides.task])
    fixed = {override.get_key_element(): not override.is_sweep_override() for override in given}  # the last one counts
    return " ".join(override for override in job if not fixed.get(override.partition("=")[0]))


def reasons(impossible: Sequence[tuple[str, str]]) -> str:
    """Jobs that cannot be, each in words and with its reason, by the reason."""
    by_reason: dict[str, list[str]] = {}
    for job, reason in impossible:
        by_reason.setdefault(" ".join(reason.split()), []).append(job)
    lines = []
    for reason, jobs in by_reason.items():
        more = f" and {len(jobs) - _SHOWN} more" if len(jobs) > _SHOWN else ""
        lines.append(f"  {', '.join(jobs[:_SHOWN])}{more}: {reason}")
    return "\n".join(lines)


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

"""The plan of a grid sweep: all its trials, known and checked before the first one starts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from stability.analysis.levels import level_text, ordered
from stability.config.names import CHANGES_NO_RESULT, SHORT_NAMES, flatten, short_name, trial_name
from stability.core.errors import StabilityError
from stability.sweeps.hydra_internals import BasicSweeper
from stability.sweeps.jobs import InvalidJob, PlannedTrial, compose_job, describe_job, grid_jobs

Cell = tuple[tuple[str, Any], ...]  # the level of every factor, as (dotted name, level)


@dataclass(frozen=True)
class Plan:
    """The trials of a grid sweep.

    Attributes:
        trials: The trials in the order of the sweep, each once.
        duplicates: The number of jobs that configure a trial which an earlier job configures too.
        invalid: The jobs whose configuration is invalid.
    """

    trials: tuple[PlannedTrial, ...]
    duplicates: int
    invalid: tuple[InvalidJob, ...]

    @property
    def jobs(self) -> int:
        """The number of jobs, duplicates and invalid ones included."""
        return len(self.trials) + self.duplicates + len(self.invalid)

    @cached_property
    def factors(self) -> tuple[str, ...]:
        """The dotted names of the settings that vary, without the seed.

        If several settings vary together, only one of them is listed, preferably one that has a short name.
        """
        values = [flatten(trial.config) for trial in self.trials]
        usual_first = [*SHORT_NAMES, *(name for name in values[0] if name not in SHORT_NAMES)]
        factors: dict[tuple[int, ...], str] = {}
        for name in usual_first:
            if name == "seed" or name.split(".")[0] in CHANGES_NO_RESULT:
                continue
            pattern = _pattern(_level(v.get(name)) for v in values)
            if any(pattern):
                factors.setdefault(pattern, name)
        return tuple(factors.values())

    @cached_property
    def levels(self) -> dict[str, list[str]]:
        """{short name: levels, as they are typed} of the factors, and of the seed if there are several."""
        values = [flatten(trial.config) for trial in self.trials]
        found = {name: ordered(_level(v.get(name)) for v in values) for name in (*self.factors, "seed")}
        return {
            short_name(name): [level_text(level) for level in levels]
            for name, levels in found.items()
            if name != "seed" or len(levels) > 1
        }

    @cached_property
    def cells(self) -> dict[Cell, list[PlannedTrial]]:
        """The trials by the levels of the factors. The trials of a cell differ in the seed."""
        cells: dict[Cell, list[PlannedTrial]] = {}
        for trial in self.trials:
            values = flatten(trial.config)
            cell = tuple((name, _level(values.get(name))) for name in self.factors)
            cells.setdefault(cell, []).append(trial)
        return cells

    def describe(self, trial: PlannedTrial) -> str:
        """Return the trial's factors and seed, as `epsilon 0.1  seed 0`."""
        values = flatten(trial.config)
        levels = {name: _level(values.get(name)) for name in (*self.factors, "seed")}
        return "  ".join(f"{short_name(name)} {level_text(level)}" for name, level in levels.items())


class GridSweeper(BasicSweeper):
    """Hydra's sweeper that goes through all combinations: `hydra/sweeper=basic`."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None) -> None:
        check_count("hydra.sweeper.max_batch_size", max_batch_size, or_null=True)
        super().__init__(max_batch_size, params)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Do nothing: `make_plan` has checked every job, and an invalid one does not stop the others."""


def make_plan(cfg: DictConfig) -> Plan | None:
    """Compose and check every job of a grid sweep.

    Args:
        cfg: The configuration that Hydra composed for the whole sweep.

    Returns:
        The plan, or None if another sweeper than the grid chooses the trials.

    Raises:
        StabilityError: The sweep has no job.
    """
    if cfg.hydra.sweeper._target_ != f"{GridSweeper.__module__}.{GridSweeper.__name__}":
        return None
    trials: dict[Path, PlannedTrial] = {}
    invalid = []
    jobs = grid_jobs(cfg)
    for number, job in enumerate(jobs):
        try:
            _, trial = compose_job(cfg, job, number)
            first = trials.setdefault(trial.folder, trial)
            if trial_name(first.config) != trial_name(trial.config):
                raise StabilityError(
                    f"Another trial has the folder {trial.folder} already: leave hydra.sweep.subdir at its default."
                )
        except StabilityError as error:
            invalid.append(InvalidJob(describe_job(cfg, job), str(error)))
    return Plan(tuple(trials.values()), len(jobs) - len(trials) - len(invalid), tuple(invalid))


def check_count(name: str, value: object, *, or_null: bool = False) -> None:
    """Raise StabilityError unless the setting is a whole number of 1 or more. True is not a number."""
    if or_null and value is None:
        return
    if type(value) is not int or value < 1:
        choices = "a whole number of 1 or more, or null" if or_null else "a whole number of 1 or more"
        raise StabilityError(f"{name}={value}: give {choices}.")


def _pattern(levels: Iterable[Any]) -> tuple[int, ...]:
    """Number the levels as they appear. Settings that vary together have the same numbers; all 0: it does not vary."""
    numbers: dict[Any, int] = {}
    return tuple(numbers.setdefault(level, len(numbers)) for level in levels)


def _level(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

"""The plan of a grid sweep: all its trials, known and checked before the first one starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from stability.config.names import trial_name
from stability.core.errors import StabilityError
from stability.core.files import VERDICT
from stability.sweeps.cells import Cells
from stability.sweeps.hydra_internals import BasicSweeper
from stability.sweeps.jobs import InvalidJob, PlannedTrial, compose_job, describe_job, grid_jobs
from stability.sweeps.until_ruled import stops_when_ruled, train_until_ruled
from stability.trials.program import check_program


@dataclass(frozen=True)
class Plan(Cells):
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


class GridSweeper(BasicSweeper):
    """Hydra's sweeper that goes through all combinations, or as many as the claims need: `hydra/sweeper=basic`."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None) -> None:
        check_count("hydra.sweeper.max_batch_size", max_batch_size, or_null=True)
        super().__init__(max_batch_size, params)

    def sweep(self, arguments: list[str]) -> Any:
        """Train all combinations; with `sweep.until=ruled`, until the claims are ruled on."""
        assert self.config is not None
        assert self.launcher is not None
        if stops_when_ruled(self.config):
            return train_until_ruled(self.config, self.launcher)
        return super().sweep(arguments)

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
            if trial.config.runs_command and not (trial.folder / VERDICT).exists():
                check_program(trial.config)
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

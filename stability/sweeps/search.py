"""A search by Optuna that can be interrupted: `n_trials` is its total, and the same command continues it.

Hydra's own Optuna sweeper would train `n_trials` more after a restart, would forget the trial that it was training, and
would draw the first trials again.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stability.core.errors import StabilityError
from stability.sweeps.jobs import grid_jobs


@dataclass(frozen=True)
class Search:
    """The number of trials that a search trains in all, and the number of those that are done."""

    total: int
    done: int


class ResumingSweeper(OptunaSweeper):
    """Optuna's sweeper with a study on disk, which one process at a time searches. `experiment=search` uses it.

    `hydra.sweeper.storage` is a sqlite file, `hydra.sweeper.n_trials` the number of finished trials to end with.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the configuration that Hydra passes."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._whole, self._settings = config, config.hydra.sweeper

    def sweep(self, arguments: list[str]) -> None:
        """Search until `n_trials` trials are finished, those of earlier runs included.

        Raises:
            StabilityError: The storage is no sqlite file, or another process is searching.
        """
        from optuna.trial import TrialState

        # Optuna's sweeper warns about crashed trials. The sweep lists them at its end.
        logging.getLogger("hydra_plugins.hydra_optuna_sweeper").setLevel(logging.CRITICAL)
        with _locked(_database(self._settings)):
            OmegaConf.save(self._whole, Path(self._whole.hydra.sweep.dir) / "multirun.yaml")  # as Hydra's sweepers do
            study = _open_study(self._settings)
            for trial in study.get_trials(states=[TrialState.RUNNING]):  # a process was killed while it trained these
                study.enqueue_trial(trial.params)
                study.tell(trial.number, state=TrialState.FAIL)
            self.sweeper.n_trials = max(0, self._settings.n_trials - _count_finished(study))
            self.sweeper.sampler = _sampler(self._settings, drawn=len(study.trials))
            try:
                super().sweep(arguments)
            except ValueError as error:
                # When no trial is finished, Optuna raises ValueError as it looks for the best one. The sweep lists why
                # none is. Some of OmegaConf's errors are ValueErrors too.
                if _count_finished(study) or isinstance(error, OmegaConfBaseException):
                    raise


def find_search(cfg: DictConfig) -> Search | None:
    """Look up how far the search of a sweep is.

    Args:
        cfg: The configuration that Hydra composed for the whole sweep.

    Returns:
        The search, or None if Optuna is not the sweeper.

    Raises:
        StabilityError: `n_trials` is below 1, or a grid has more combinations than `n_trials`. Optuna would leave some
            out without a warning.
    """
    settings = cfg.hydra.sweeper
    if "n_trials" not in settings:
        return None
    if settings.n_trials < 1:
        raise StabilityError(f"hydra.sweeper.n_trials={settings.n_trials}: give 1 or more.")
    if settings.sampler._target_.endswith(".GridSampler") and (size := len(grid_jobs(cfg))) > settings.n_trials:
        raise StabilityError(
            f"hydra.sweeper.n_trials={settings.n_trials}, but the grid has {size} combinations, and GridSampler would "
            f"leave out {size - settings.n_trials}: give hydra.sweeper.n_trials={size}."
        )
    continues = settings._target_.endswith(f".{ResumingSweeper.__name__}") and _database(settings).exists()
    return Search(settings.n_trials, _count_finished(_open_study(settings)) if continues else 0)


@contextmanager
def _locked(database: Path) -> Iterator[None]:
    database.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{database}.lock").acquire(timeout=0):
            yield
    except Timeout:
        raise StabilityError(f"Another process is searching with {database}: wait until it has ended.") from None


def _database(settings: DictConfig) -> Path:
    storage = str(settings.storage)
    if not storage.startswith("sqlite:///"):
        raise StabilityError(f"hydra.sweeper.storage={storage}: give sqlite:///PATH.")
    return Path(storage.removeprefix("sqlite:///"))


def _open_study(settings: DictConfig) -> Any:
    import optuna  # late: it takes a while

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        study_name=settings.study_name,
        storage=settings.storage,
        direction=getattr(settings.direction, "name", settings.direction),
        load_if_exists=True,
    )


def _sampler(settings: DictConfig, *, drawn: int) -> Any:
    """The sampler for the rest of a search in which `drawn` trials have been drawn."""
    changes: dict[str, Any] = {}
    if settings.sampler.get("seed") is not None:
        changes["seed"] = settings.sampler.seed + drawn  # with the same seed it would draw the first trials again
    if "constant_liar" in settings.sampler:  # TPE
        changes["constant_liar"] = settings.n_jobs > 1  # without it, trials drawn at once would be close to each other
    return instantiate(OmegaConf.merge(settings.sampler, changes), _execution_whitelist_="optuna.samplers.*")


def _count_finished(study: Any) -> int:
    return sum(trial.state.name == "COMPLETE" for trial in study.trials)

"""A search by Optuna that can be depended on: `n_trials` is its total, and after a kill it goes on.

Hydra's own sweeper makes `n_trials` more when it goes on, forgets the trial that was being trained, and draws the first
ones again.
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
from stability.sweeps.plan import grid


@dataclass(frozen=True)
class Search:
    """How many trials a search is to have, and how many it has."""

    total: int
    done: int


class ResumingSweeper(OptunaSweeper):
    """Optuna's sweeper, whose study is in a storage and is searched by one process at a time."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra composed."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._whole, self._settings = config, config.hydra.sweeper

    def sweep(self, arguments: list[str]) -> None:
        """Search until there are `n_trials` finished trials, those of former sweeps included."""
        from optuna.trial import TrialState

        logging.getLogger("hydra_plugins.hydra_optuna_sweeper").setLevel(logging.CRITICAL)  # crashes are told by us
        with _alone(_database(self._settings)):
            OmegaConf.save(self._whole, Path(self._whole.hydra.sweep.dir) / "multirun.yaml")  # as Hydra's own does
            study = _study(self._settings)
            for trial in study.get_trials(states=[TrialState.RUNNING]):  # a killed process left them half-way
                study.enqueue_trial(trial.params)
                study.tell(trial.number, state=TrialState.FAIL)
            self.sweeper.n_trials = max(0, self._settings.n_trials - _finished(study))
            self.sweeper.sampler = _sampler(self._settings, len(study.trials))
            try:
                super().sweep(arguments)
            except ValueError as error:  # as some of OmegaConf's are, of a trial that cannot be
                if _finished(study) or isinstance(error, OmegaConfBaseException):
                    raise
                return  # of no finished trial there is no best, over which Optuna stumbles
            best = " ".join(f"{name}={value:.4g}" for name, value in study.best_params.items())
            print(f"The best of {_finished(study)} trials: {study.best_value:.4g} with {best}")


def look_up(cfg: DictConfig) -> Search | None:
    """The search that Hydra composed `cfg` for, as it stands; None if Optuna is not its sweeper.

    StabilityError where a grid has more combinations than there are to be trials: Optuna would leave some out silently.
    """
    settings = cfg.hydra.sweeper
    if "n_trials" not in settings:
        return None
    if settings.n_trials < 1:
        raise StabilityError(f"hydra.sweeper.n_trials={settings.n_trials}: it has to be 1 or more.")
    if settings.sampler._target_.endswith(".GridSampler") and (size := len(grid(cfg))) > settings.n_trials:
        raise StabilityError(
            f"hydra.sweeper.n_trials={settings.n_trials}, but the grid has {size} combinations, of which GridSampler "
            f"would leave out {size - settings.n_trials}: give hydra.sweeper.n_trials={size}."
        )
    goes_on = settings._target_.endswith(f".{ResumingSweeper.__name__}") and _database(settings).exists()
    return Search(settings.n_trials, _finished(_study(settings)) if goes_on else 0)


@contextmanager
def _alone(database: Path) -> Iterator[None]:
    database.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{database}.lock").acquire(timeout=0):
            yield
    except Timeout:
        raise StabilityError(f"{database} is being searched by another process: wait for it.") from None


def _database(settings: DictConfig) -> Path:
    storage = str(settings.storage)
    if not storage.startswith("sqlite:///"):
        raise StabilityError(f"hydra.sweeper.storage={storage}: give sqlite:///PATH.")
    return Path(storage.removeprefix("sqlite:///"))


def _study(settings: DictConfig) -> Any:
    import optuna  # late: it takes a while

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        study_name=settings.study_name,
        storage=settings.storage,
        direction=getattr(settings.direction, "name", settings.direction),
        load_if_exists=True,
    )


def _sampler(settings: DictConfig, chosen: int) -> Any:
    """The sampler, to go on after it has chosen so many trials."""
    changes: dict[str, Any] = {}
    if settings.sampler.get("seed") is not None:
        changes["seed"] = settings.sampler.seed + chosen  # or the same would be drawn again
    if "constant_liar" in settings.sampler:  # TPE
        changes["constant_liar"] = settings.n_jobs > 1  # or those chosen at once would be neighbours
    return instantiate(OmegaConf.merge(settings.sampler, changes), _execution_whitelist_="optuna.samplers.*")


def _finished(study: Any) -> int:
    return sum(trial.state.name == "COMPLETE" for trial in study.trials)

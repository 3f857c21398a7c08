"""A search by Optuna, made dependable: `n_trials` is its total, and one that was killed goes on.

Hydra's own resume makes `n_trials` more, and forgets the trial that was being trained.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, read_write

from stability.errors import StabilityError
from stability.studies.plan import grid


@dataclass(frozen=True)
class Search:
    """How many trials a search is to have, and how many it has."""

    total: int
    done: int
    lock: FileLock | None = None  # held while it is searched


def look_up(cfg: DictConfig) -> Search | None:
    """The search that Hydra composed `cfg` for, as it stands; None if Optuna is not its sweeper.

    StabilityError where a grid has more combinations than there are to be trials: Optuna would silently leave some out.
    """
    sweeper = cfg.hydra.sweeper
    if not sweeper._target_.endswith(".OptunaSweeper"):
        return None
    if sweeper.n_trials < 1:
        raise StabilityError(f"hydra.sweeper.n_trials={sweeper.n_trials}: it has to be 1 or more.")
    if sweeper.sampler._target_.endswith(".GridSampler") and (size := len(grid(cfg))) > sweeper.n_trials:
        raise StabilityError(
            f"hydra.sweeper.n_trials={sweeper.n_trials}, but the grid has {size} combinations, of which GridSampler "
            f"would leave out {size - sweeper.n_trials}: give hydra.sweeper.n_trials={size}."
        )
    database = _database(cfg)
    if sweeper.storage is None or (database and not database.exists()):
        return Search(sweeper.n_trials, 0)
    return Search(sweeper.n_trials, _count(_study(cfg), "COMPLETE"))


def go_on(cfg: DictConfig) -> Search | None:
    """Prepare the search to go on to its total and no further. Gives it as it stands; None if there is none.

    The trials that a killed process left half-way are put in the queue again, with what was chosen for them.
    """
    search = look_up(cfg)
    if search is None or cfg.hydra.sweeper.storage is None:
        return search
    lock = None
    if database := _database(cfg):
        database.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{database}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StabilityError(f"Another process goes on with the search in {database}: wait for it.") from None
    study = _study(cfg)
    if lock:  # nobody else can be at work on them
        for trial in [t for t in study.trials if t.state.name == "RUNNING"]:
            study.enqueue_trial(trial.params)
            study.tell(trial.number, state=_state("FAIL"))
    done = _count(study, "COMPLETE")
    with read_write(cfg.hydra):
        cfg.hydra.sweeper.n_trials = max(0, search.total - done)
        if cfg.hydra.sweeper.sampler.get("seed") is not None:
            cfg.hydra.sweeper.sampler.seed += len(study.trials)  # or it would draw the same ones again
    return Search(search.total, done, lock)


def _study(cfg: DictConfig) -> Any:
    import optuna  # late: it takes a while

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = [str(getattr(d, "name", d)) for d in _as_list(cfg.hydra.sweeper.direction)]
    return optuna.create_study(
        study_name=cfg.hydra.sweeper.study_name,
        storage=cfg.hydra.sweeper.storage,
        directions=directions,
        load_if_exists=True,
    )


def _as_list(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) or not hasattr(value, "__iter__") else [*value]


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _count(study: Any, state: str) -> int:
    return sum(trial.state.name == state for trial in study.trials)


def _database(cfg: DictConfig) -> Path | None:
    """The file of an sqlite storage, which is searched by one process at a time."""
    storage = str(cfg.hydra.sweeper.storage)
    return Path(storage.removeprefix("sqlite:///")) if storage.startswith("sqlite:///") else None
